"""Processes: the parent, the workers, and the assembly of a worker's parts.

Only this room starts and stops anything. Used by `cli`.
"""
