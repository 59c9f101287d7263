"""The embedded store. Only this package knows SQLite. Used by `process` and `cli`."""
