"""The HTTP/1.1 server: bytes to requests, responses to bytes, in order and within limits.

Only this room knows httptools and the wire format of HTTP. Used by `environments`, `api`, `console` and `process`.
"""
