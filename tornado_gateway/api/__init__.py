"""The data routes: flags, events, settings, visitors.

Only this room knows what SDKs send and expect. Used by `process`.
"""
