"""Segments that only upstream can evaluate: lists and past events (wire contract A.3, A.10).

Without upstream the response is "no", because an error would cost the application up to 14 s of retries.
"""

from collections.abc import Awaitable, Mapping, Sequence

from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import RequestError, UpstreamError
from tornado_gateway.http.fields import (
    ESCAPE,
    MAX_VALUE_BYTES,
    form_decoded,
    json_object_and_body,
    known_parameters,
    query_text,
    raw_query_value,
)
from tornado_gateway.http.messages import Request, Response

RESPONSES = {member: Response(200, b"true" if member else b"false") for member in (True, False)}
# Android accepts the response to a list check only as a script, all other SDKs only as JSON.
SCRIPT_RESPONSES = {
    member: Response(200, response.body, b"application/javascript; charset=utf-8")
    for member, response in RESPONSES.items()
}
DSL_PARAMETERS = (b"uuid", b"accountId")  # that are forwarded


class ListsApi:
    """The endpoints for segments that upstream evaluates. If a request names no environment, the response is "no"."""

    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    def check_attribute(self, request: Request) -> Response | Awaitable[Response]:
        """Return whether a value is in a list. One that is too long to be forwarded is in none."""
        raw = raw_query_value(request.query, b"attribute")
        list_id = query_text(request.query, b"listId")
        if not raw or not list_id:
            raise RequestError(400, "attribute and listId are required")
        environment = self._environments.of_lookup(request, list_id, without_key=True)
        lists = None if environment is None else environment.evaluator.lists
        agent = request.header(b"user-agent") or b""
        responses = SCRIPT_RESPONSES if agent.startswith(b"Dalvik/") or b"okhttp" in agent else RESPONSES
        if lists is None or len(raw) > MAX_VALUE_BYTES:
            return responses[False]
        return _check(lists, list_id, _readings(raw), responses)

    def evaluate_event_dsl(self, request: Request) -> Response | Awaitable[Response]:
        """Forward a segment about the past events of a visitor."""
        body = json_object_and_body(request.body)[1]
        environment = self._environments.of_lookup(request, without_key=True)
        if environment is None:
            return RESPONSES[False]
        return _evaluate(environment, known_parameters(request.query, DSL_PARAMETERS), body)


async def _evaluate(environment: Environment, query: str, body: bytes) -> Response:
    try:
        return Response(200, await environment.upstream.evaluate_event_dsl(query, body))
    except UpstreamError:
        return RESPONSES[False]


def _readings(raw: bytes) -> Sequence[str]:
    """Return both readings of a plus sign: some SDKs send the value unencoded, so it may also be a blank."""
    if ESCAPE.search(raw):
        return [form_decoded(raw)]
    text = raw.decode("utf-8", "replace")
    return [text, form_decoded(raw)] if b"+" in raw else [text]


def _check(
    lists: ListChecks, list_id: str, values: Sequence[str], responses: Mapping[bool, Response]
) -> Response | Awaitable[Response]:
    """Return whether one of the values is in a list, at once if that is known."""
    for value in values:
        member = lists.known_member(list_id, value)
        if member is None:
            return _ask(lists, list_id, values, responses)
        if member:
            return responses[True]
    return responses[False]


async def _ask(lists: ListChecks, list_id: str, values: Sequence[str], responses: Mapping[bool, Response]) -> Response:
    for value in values:
        if await lists.is_member(list_id, value):
            return responses[True]
    return responses[False]
