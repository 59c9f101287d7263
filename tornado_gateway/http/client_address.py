"""The address of the client behind trusted proxies."""

import ipaddress
from collections.abc import Sequence

from tornado_gateway.http.messages import Request

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HOPS = 32  # addresses of X-Forwarded-For that are read: a client can send 16,000


class ClientAddress:
    """Finds the address of the client: that of the socket, or the one that trusted proxies report.

    The right-most address of `X-Forwarded-For` that is not a trusted proxy counts; all left of it can be forged.
    """

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)

    def __call__(self, request: Request) -> str:
        address = request.peer
        if not self._trusted or not self._is_trusted(address):
            return address
        hops = request.list_header(b"x-forwarded-for").decode("latin-1").rsplit(",", MAX_HOPS)
        for hop in reversed(hops[-MAX_HOPS:]):
            hop = hop.strip()
            if not hop:
                continue
            address = hop
            if not self._is_trusted(hop):
                break
        return address

    def _is_trusted(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)
