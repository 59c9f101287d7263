"""Events from acceptance to delivery: group commit, batches, retries, dead letters.

Only this room decides what a failed delivery means. Used by `environments`, `api` and `process`.
"""
