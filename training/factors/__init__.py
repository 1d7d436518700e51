"""Id-based models: how they are trained, and how they are made servable to users and items that they never saw."""
