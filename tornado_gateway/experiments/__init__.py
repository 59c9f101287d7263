"""Experiments that monitor themselves: samples of visitors, the test of their shares, and counts of each feature.

Workers note visitors and decisions in memory, and merge them in the store. Used by `environments`, `api`, `console` and
`process`.
"""
