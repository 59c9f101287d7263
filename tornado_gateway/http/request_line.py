"""A second, lenient reading of a request line that the strict parser has rejected, used by `reader.py`.

PHP SDKs write the visitor's user agent into the query without escaping it:
`POST /events/t?visitor_ua=Mozilla/5.0 (iPhone; CPU iPhone OS 17_2) HTTP/1.1`. The method is the text before the first
space, the version the text after the last one. Spaces, tabs and bytes above 0x7F between them are percent-encoded;
every other byte that the strict parser rejects stays rejected, CR, LF and NUL above all. Framing is left to the strict
parser, which reads the encoded line again.
"""

import re
from typing import Any

import httptools

# The path must be complete and need no encoding, because it decides whether a line is read leniently at all.
_START = re.compile(rb"(?:GET|POST) (/[^\x00-\x20\x7f-\xff?]*)\?")
_LINE = re.compile(rb"([A-Z]+ )([\t\x20-\x7e\x80-\xff]*)( HTTP/1\.[01])\r")
_NOT_ALLOWED = re.compile(rb"[\t \x80-\xff]")


def path_of(line: bytes) -> bytes | None:
    """Return the path of a request line or of its beginning; None if the line must not be read leniently."""
    found = _START.match(line)
    return found[1] if found else None


def encoded(line: bytes) -> bytes | None:
    """Return a request line, given with its CR, encoded and with CR LF; None if it stays rejected."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    method, target, version = found.groups()
    allowed: bytes = _NOT_ALLOWED.sub(lambda byte: b"%%%02X" % byte[0][0], target)
    return None if allowed == target else b"%b%b%b\r\n" % (method, allowed, version)


class PendingLine:
    """Replaces the parser until the end of a rejected request line has arrived."""

    def __init__(self, start: bytes) -> None:
        self.data = bytearray(start)

    def feed_data(self, data: bytes) -> None:
        self.data += data
        if b"\n" in data:
            raise httptools.HttpParserError("the rejected request line is complete")


class _Framing:
    """Follows the strict parser through a message, to find how many bytes it can get without passing its end."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.has_begun = False
        self.is_complete = False
        self.in_body = False
        self.body_bytes = 0

    def on_message_begin(self) -> None:
        self.has_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_body and name.lower() == b"content-length":  # not a trailer; the parser has checked it
            self.body_bytes = int(value)

    def on_headers_complete(self) -> None:
        self.in_body = True

    def on_message_complete(self) -> None:
        self.is_complete = True

    def end_of_piece(self, data: bytes, start: int) -> int:
        """Return where the next piece ends: a line, or a body whose length is known."""
        if self.in_body and self.body_bytes:
            return start + self.body_bytes
        return data.find(b"\n", start) + 1 or len(data)


def start_of_rejected_line(data: bytes) -> int | None:
    """Return where the request line starts that the strict parser rejects; None if it rejects something else.

    `data` starts where a message starts. The parser does not report where it stopped, so it reads the data again in
    pieces that never contain the end of one message and the beginning of another.
    """
    start = at = 0
    framing = _Framing()
    parser: Any = httptools.HttpRequestParser(framing)
    while at < len(data):
        end = framing.end_of_piece(data, at)
        try:
            parser.feed_data(data[at:end])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return start if at == start and not framing.in_body else None
        at = end
        if framing.is_complete:
            framing.reset()
        if not framing.has_begun:
            start = at
    return None
