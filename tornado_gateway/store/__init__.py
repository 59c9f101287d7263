"""Durable state: waiting events, settings documents, leases, aliases and sticky decisions.

Only this room knows how data is kept (SQLite, Redis). Used by `settings`, `events` and the rooms above.
"""
