"""OFREP, the remote evaluation protocol of OpenFeature: flags, contexts, evaluations, exposures (docs/openfeature.md).

Only this room knows what OFREP clients demand. Used by `api` and `process`.
"""
