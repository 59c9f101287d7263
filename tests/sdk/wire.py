"""HTTP as bytes: what is sent is what the test wrote, what is compared is what arrived."""

import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson


class HttpResponse(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


def request_bytes(method: str, target: str | bytes, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = {"Host": "gateway", "Content-Length": str(len(body)), "Connection": "close"} | dict(headers)
    if method in ("GET", "HEAD", "OPTIONS") and not body:
        del lines["Content-Length"]
    target = target.encode("latin-1") if isinstance(target, str) else target
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method.encode(), target, head.encode("latin-1"), body)


def exchange(port: int, data: bytes, seconds: float = 60.0) -> bytes:
    """Everything that comes back until the server closes."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        while part := connection.recv(65536):
            received += part
    return bytes(received)


def parse(data: bytes) -> tuple[HttpResponse, bytes]:
    """The first response in the data, and the rest."""
    head, separator, rest = data.partition(b"\r\n\r\n")
    assert separator, data
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    size = int(headers.get("content-length", 0))
    return HttpResponse(int(status_line.split(" ")[1]), headers, rest[:size]), rest[size:]


def ask(
    port: int, method: str, target: str | bytes, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> HttpResponse:
    """One request on a connection of its own."""
    answer, rest = parse(exchange(port, request_bytes(method, target, body, headers or {})))
    assert not rest, rest
    return answer
