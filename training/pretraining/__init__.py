"""What is learned of items' content before any user is looked at, and plugged into models as their features."""
