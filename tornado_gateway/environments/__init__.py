"""Everything of one account and SDK key: its parts, its decisions with their inputs, its requests.

Only this room compares accounts and keys, and knows which inputs a decision needs. Used by `api`, `console`, `process`,
`cli`.
"""
