"""The settings of the account: polled, compiled once per change, mirrored to and from the store.

Only this room changes the current snapshot. Used by `environments`, `api` and `console`.
"""
