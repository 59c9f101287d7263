"""The distributed store. Only this package knows Redis."""
