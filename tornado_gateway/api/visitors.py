"""Location and device of a visitor, for full SDKs that decide by themselves (wire contract A.2, A.10).

Unknown facts are omitted, because an error would cost the application up to 14 s of retries.
"""

import re
from functools import lru_cache

from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.registry import Environments
from tornado_gateway.http.fields import (
    ClientAddress,
    address_in,
    is_from_browser,
    parameter_text,
    query_text,
    raw_query_value,
)
from tornado_gateway.http.messages import Request, Response

UNKNOWN_LOCATION = Response(200, b'{"status":0}')
BROWSER_AGENT = re.compile(rb"^Mozilla/|^Opera/")
LONGEST_KNOWN_AGENT = 1_000  # bytes, percent-encoded


class VisitorsApi:
    """The endpoints that return facts about a visitor."""

    def __init__(
        self,
        environments: Environments,
        location: LocationReader,
        device: DeviceReader,
        client_address: ClientAddress,
        *,
        ip_fallback: str,
        serves_browsers: bool,
    ) -> None:
        self._environments = environments
        self._location = location
        self._device = device
        self._client_address = client_address
        self._ip_fallback = ip_fallback
        self._serves_browsers = serves_browsers

    def user_details(self, request: Request) -> Response:
        self._environments.of_lookup(request, without_key=True)
        address = _address(request.query)
        agent = _user_agent(request.query)
        if address is None and self._takes_client_address(request):
            address = self._client_address(request)
        location = self._location.encoded(address) if address else b"{}"
        device = self._device.encoded(agent) if agent else b"{}"
        return Response(200, b'{"location":%b,"userAgent":%b}' % (location, device))

    def location_only(self, request: Request) -> Response:
        self._environments.of_lookup(request, without_key=True)
        address = _address(request.query)
        location = self._location.encoded(address) if address else b"{}"
        return UNKNOWN_LOCATION if location == b"{}" else Response(200, b'{"location":%b}' % location)

    def device_only(self, request: Request) -> Response:
        self._environments.of_lookup(request, without_key=True)
        return Response(200, self._device.encoded(_user_agent(request.query) or ""))

    def _takes_client_address(self, request: Request) -> bool:
        """Return whether the client is the visitor. Browsers do not know their address; server SDKs run elsewhere."""
        if self._ip_fallback == "browser":
            return is_from_browser(request) or (
                self._serves_browsers and BROWSER_AGENT.match(request.header(b"user-agent") or b"") is not None
            )
        return self._ip_fallback == "always"


def _address(query: bytes) -> str | None:
    """Return the `ipAddress` of a query: a text without an address as it is, so that nothing takes its place."""
    text = query_text(query, b"ipAddress")
    return None if text is None else address_in(text) or text


def _user_agent(query: bytes) -> str | None:
    raw = raw_query_value(query, b"userAgent")
    if raw is None:
        return None
    return _known_agent(raw) if len(raw) <= LONGEST_KNOWN_AGENT else parameter_text(raw)


# Cached, because visitors share few agents, and decoding the dozens of escapes of one takes longer than the lookup.
_known_agent = lru_cache(maxsize=2_000)(parameter_text)
