"""What keeps versions loaded and work bounded: servable, registry, reloader, batcher, executor. No HTTP, no store."""
