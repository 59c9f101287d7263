"""Everything of one account and SDK key, and the environment that a request belongs to.

Only this room compares accounts and keys. Used by `api`, `console` and `process`.
"""
