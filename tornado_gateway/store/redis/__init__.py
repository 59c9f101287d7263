"""The distributed store. Only this package knows Redis. Used by `process` and `cli`."""
