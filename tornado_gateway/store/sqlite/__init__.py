"""The embedded store. Only this package knows SQLite."""
