"""Faults of everything around a gateway, chosen by a seed, while clients send events: scripts/chaos.

`plan` chooses the faults, `faults` makes them in a `world`, `traffic` sends the events, `watch` observes the processes,
and `verdict` compares the events that were acknowledged with those that arrived.
"""
