"""Counts of all workers: shared memory, scoreboard, Prometheus.

Only this room knows the layout of the shared memory. Used by `environments`, `console` and `process`.
"""
