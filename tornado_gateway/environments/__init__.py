"""Everything of one account and SDK key: its decisions and their inputs.

Only this room knows which inputs a decision needs and where they come from. Used by `api`, `console`, `process`, `cli`.
"""
