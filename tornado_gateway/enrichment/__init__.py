"""Facts about visitors: location, device, list memberships.

Only this room knows MaxMind's databases and user agents. Used by `environments`, `api`, `console` and `process`.
"""
