"""OFREP, the remote evaluation protocol of OpenFeature: flags, contexts, evaluations, exposures (docs/openfeature.md).

Only this room knows the demands of OFREP clients. Used by `api` and `process`.
"""
