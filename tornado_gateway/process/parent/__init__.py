"""The parent process: forks workers, watches them, replaces them, ends them. Used by `cli` and by the workers.

Only this room knows fork, signals of the parent and systemd's notifications.
"""
