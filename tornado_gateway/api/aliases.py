"""Aliases of visitors (wire contract A.8).

If the store fails, or if no environment is named, an id stands for itself, because an error would cost the application
up to 14 s of retries.
"""

from collections.abc import Awaitable

import orjson

from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import RequestError, StoreError
from tornado_gateway.http.fields import json_object, limited_id, query_text, raw_query_value, required_text
from tornado_gateway.http.messages import Request, Response

MAX_IDS = 100  # of one request: each is a lookup in the store, and decisions of others wait for them


class AliasesApi:
    """The endpoints that set and return aliases."""

    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    def set_alias(self, request: Request) -> Awaitable[Response]:
        """Store an alias. The body takes precedence over the query, which repeats it without encoding."""
        fields = json_object(request.body) if request.body else {}
        for name in ("userId", "aliasId"):
            fields.setdefault(name, query_text(request.query, name.encode()))
        user, alias = (limited_id(name, required_text(fields, name)) for name in ("userId", "aliasId"))
        if user == alias:
            raise RequestError(400, "userId and aliasId must differ")
        return _store_alias(self._environments.of_lookup(request), alias, user)

    def alias_user_id(self, request: Request) -> Awaitable[Response]:
        """Return one row for each id, in the requested order.

        Server SDKs, which name their account, need a row also for an id without an alias. Mobile SDKs, which do not,
        would keep such a row permanently (wire contract 0.12, A.8).
        """
        ids = _ids(query_text(request.query, b"userId"))
        if not ids:
            raise RequestError(400, "userId is required: a JSON list of ids")
        if len(ids) > MAX_IDS:
            raise RequestError(400, f"userId may have at most {MAX_IDS} ids")
        with_unknown = raw_query_value(request.query, b"accountId") is not None
        return _alias_rows(self._environments.of_lookup(request), ids, with_unknown=with_unknown)


async def _store_alias(environment: Environment | None, alias: str, user: str) -> Response:
    try:
        is_set = environment is not None and await environment.state.set_alias(alias, user)
    except StoreError:
        is_set = False
    return Response(200, b'{"isAliasSet":true}' if is_set else b'{"isAliasSet":false}')


async def _alias_rows(environment: Environment | None, ids: list[str], *, with_unknown: bool) -> Response:
    try:
        found = {} if environment is None else await environment.state.aliases(ids)
    except StoreError:
        found = {}
    rows = [{"aliasId": id_, "userId": found.get(id_, id_)} for id_ in ids if with_unknown or id_ in found]
    return Response(200, orjson.dumps(rows))


def _ids(text: str | None) -> list[str]:
    """Return the ids of a JSON list, of a list of unquoted ids (.NET), or a bare id as a list of one."""
    if text is None:
        return []
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        parsed = [part.strip() for part in text.strip("[]").replace('"', "").split(",")]
    if not isinstance(parsed, list):
        parsed = [text]
    return [id_ if isinstance(id_, str) else orjson.dumps(id_).decode() for id_ in parsed if id_ not in ("", None)]
