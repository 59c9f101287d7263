"""The data routes: flags, events, settings, visitors, lists, aliases.

Only this room knows the requests that SDKs send and the responses that they expect. Used by `process`.
"""
