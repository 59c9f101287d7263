"""Knowledge of the gateway about its own decisions and state, beyond counters: simulated visitors and verified
expectations.

Nothing here sends events or stores decisions. Used by `console`, `process` and `cli`.
"""
