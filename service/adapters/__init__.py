"""Stores: the core's ports on SQLite (embedded, the default) and on Redis."""
