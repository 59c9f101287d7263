"""What full SDKs ask while they decide: user details, lists, aliases (wire contract A.2, A.3, A.8, A.10).

An error costs the application that asks up to 14 seconds of retries, so what is not known is answered as unknown.
"""

import re
from collections.abc import Awaitable
from functools import lru_cache

import orjson

from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.errors import RequestError, StoreError, UpstreamError
from tornado_gateway.http.fields import (
    ESCAPE,
    ClientAddress,
    form_decoded,
    is_from_browser,
    json_object,
    json_value,
    parameter_text,
    query_text,
    raw_query_value,
    required_text,
)
from tornado_gateway.http.messages import Request, Response
from tornado_gateway.store.interfaces import StateStore
from tornado_gateway.upstream.client import Upstream

ANSWERS = {member: Response(200, b"true" if member else b"false") for member in (True, False)}
# Android takes the answer of a list check only as a script, everybody else only as JSON.
SCRIPT_ANSWERS = {
    member: Response(200, answer.body, b"application/javascript; charset=utf-8") for member, answer in ANSWERS.items()
}
UNKNOWN_LOCATION = Response(200, b'{"status":0}')
BROWSER_AGENT = re.compile(rb"^Mozilla/|^Opera/")
LONGEST_KNOWN_AGENT = 1_000  # bytes, percent-encoded


class Lookups:
    """The endpoints that answer questions about a visitor."""

    def __init__(
        self,
        location: LocationReader,
        device: DeviceReader,
        lists: ListChecks,
        state: StateStore,
        upstream: Upstream,
        client_address: ClientAddress,
        *,
        ip_fallback: str,
        serves_browsers: bool,
    ) -> None:
        self._location = location
        self._device = device
        self._lists = lists
        self._state = state
        self._upstream = upstream
        self._client_address = client_address
        self._ip_fallback = ip_fallback
        self._serves_browsers = serves_browsers

    # User details

    def user_details(self, request: Request) -> Response:
        address = query_text(request.query, b"ipAddress")
        agent = _user_agent(request.query)
        if address is None and self._takes_client_address(request):
            address = self._client_address(request)
        location = self._location.encoded(address) if address else b"{}"
        device = self._device.encoded(agent) if agent else b"{}"
        return Response(200, b'{"location":%b,"userAgent":%b}' % (location, device))

    def location_only(self, request: Request) -> Response:
        address = query_text(request.query, b"ipAddress")
        location = self._location.encoded(address) if address else b"{}"
        return UNKNOWN_LOCATION if location == b"{}" else Response(200, b'{"location":%b}' % location)

    def device_only(self, request: Request) -> Response:
        return Response(200, self._device.encoded(_user_agent(request.query) or ""))

    def _takes_client_address(self, request: Request) -> bool:
        """A browser does not know its address; of a server SDK the socket's address would be the wrong one."""
        if self._ip_fallback == "browser":
            return is_from_browser(request) or (
                self._serves_browsers and BROWSER_AGENT.match(request.header(b"user-agent") or b"") is not None
            )
        return self._ip_fallback == "always"

    # Lists

    async def check_attribute(self, request: Request) -> Response:
        raw = raw_query_value(request.query, b"attribute")
        list_id = query_text(request.query, b"listId")
        if not raw or not list_id:
            raise RequestError(400, "attribute and listId are required")
        member = await self._is_member(list_id, raw)
        agent = request.header(b"user-agent") or b""
        return (SCRIPT_ANSWERS if agent.startswith(b"Dalvik/") or b"okhttp" in agent else ANSWERS)[member]

    async def _is_member(self, list_id: str, raw: bytes) -> bool:
        """Some SDKs send the value unencoded, so that a plus sign may be one or may be a blank."""
        if ESCAPE.search(raw):
            return await self._lists.is_member(list_id, form_decoded(raw))
        if await self._lists.is_member(list_id, raw.decode("utf-8", "replace")):
            return True
        return b"+" in raw and await self._lists.is_member(list_id, form_decoded(raw))

    # Aliases

    def set_alias(self, request: Request) -> Awaitable[Response]:
        """The query repeats the body, but unencoded: the body counts."""
        fields = json_object(request.body) if request.body else {}
        for name in ("userId", "aliasId"):
            fields.setdefault(name, query_text(request.query, name.encode()))
        user, alias = required_text(fields, "userId"), required_text(fields, "aliasId")
        if user == alias:
            raise RequestError(400, "userId and aliasId must differ")
        return self._store_alias(alias, user)

    async def _store_alias(self, alias: str, user: str) -> Response:
        try:
            await self._state.set_alias(alias, user)
        except StoreError:
            return Response(200, b'{"isAliasSet":false}')
        return Response(200, b'{"isAliasSet":true}')

    def alias_user_id(self, request: Request) -> Awaitable[Response]:
        """One row for each id, in the order asked.

        Server SDKs, which name their account, need a row also for an id without an alias; mobile SDKs, which do not,
        would keep such a row for ever (wire contract 0.12, A.8).
        """
        ids = _ids(query_text(request.query, b"userId"))
        if not ids:
            raise RequestError(400, "userId is required: a JSON list of ids")
        return self._alias_rows(ids, with_unknown=raw_query_value(request.query, b"accountId") is not None)

    async def _alias_rows(self, ids: list[str], *, with_unknown: bool) -> Response:
        try:
            found = await self._state.aliases(ids)
        except StoreError:
            found = {}
        rows = [{"aliasId": id_, "userId": found.get(id_, id_)} for id_ in ids if with_unknown or id_ in found]
        return Response(200, orjson.dumps(rows))

    # Past events

    async def evaluate_event_dsl(self, request: Request) -> Response:
        """Only upstream knows what a visitor did before; without it the answer is "no"."""
        fields, body = json_value(request.body)
        if not isinstance(fields, dict):
            raise RequestError(400, "the body must be a JSON object")
        try:
            return Response(200, await self._upstream.evaluate_event_dsl(request.query.decode("latin-1"), body))
        except UpstreamError:
            return ANSWERS[False]


def _user_agent(query: bytes) -> str | None:
    raw = raw_query_value(query, b"userAgent")
    if raw is None:
        return None
    return _known_agent(raw) if len(raw) <= LONGEST_KNOWN_AGENT else parameter_text(raw)


# Visitors share few agents, and to decode one, with its dozens of escapes, takes longer than all else of a lookup.
_known_agent = lru_cache(maxsize=2_000)(parameter_text)


def _ids(text: str | None) -> list[str]:
    """A JSON list of ids; what .NET builds by hand may not be JSON; a bare id is a list of one."""
    if text is None:
        return []
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        parsed = [part.strip() for part in text.strip("[]").replace('"', "").split(",")]
    if not isinstance(parsed, list):
        parsed = [text]
    return [id_ if isinstance(id_, str) else orjson.dumps(id_).decode() for id_ in parsed if id_ not in ("", None)]
