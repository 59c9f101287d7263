"""The vendor's service as an async client.

Only this room knows curl and the vendor's URLs. Used by `environments` and `process`.
"""
