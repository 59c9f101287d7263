"""Responses to requests of curl, and why there is none. Not compiled, because mypyc supports no subclass of OSError."""

from typing import NamedTuple


class CurlResponse(NamedTuple):
    """Header names are in lower case. The body is empty if it went to a receiver."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes = b""


class CurlError(OSError):
    """There is no complete response. The message contains neither the URL nor headers.

    `response` is set if all of it but (a part of) the body arrived. `is_timeout`: it took too long.
    """

    def __init__(self, message: str, response: CurlResponse | None = None, *, is_timeout: bool = False) -> None:
        super().__init__(message)
        self.response = response
        self.is_timeout = is_timeout
