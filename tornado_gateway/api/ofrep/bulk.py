"""Several or all features of one visitor in one request: getFlags, and the common parts of bulk responses.

A response has an ETag. Equal requests get equal responses as long as settings, location database and device rules are
the same, so the ETag is made from these, and a request that has it gets a 304 before its body is read. If decisions
depend on more (lists, aliases, sticky decisions), the ETag is made from the response instead.
"""

import asyncio
import hashlib
import zlib
from collections.abc import Awaitable, Sequence
from functools import lru_cache, partial
from typing import Final, NamedTuple

import orjson

from tornado_gateway import core
from tornado_gateway.api.ofrep.context import feature_keys
from tornado_gateway.api.ofrep.outcomes import encoded, with_details
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.evaluation import with_address
from tornado_gateway.environments.impressions import append_impressions
from tornado_gateway.environments.registry import Environments
from tornado_gateway.gate import Gate
from tornado_gateway.http.fields import accepts_gzip, boolean, json_object, user_id
from tornado_gateway.http.messages import JSON, Request, Response

IF_NONE_MATCH = b"If-None-Match"
MAX_BEGUN = 256  # digests that are remembered: one for each environment and endpoint
SMALLEST_COMPRESSED_BYTES = 1024
LARGEST_INLINE_BYTES = 16 * 1024  # compressed in 0.2 ms; larger bodies are compressed in a thread
_GZIP = 16 + zlib.MAX_WBITS  # zlib's parameter for this format
FROM_BODY: Final = b""  # instead of an ETag: that of the response


class Asked(NamedTuple):
    """A request for several features."""

    keys: Sequence[str]
    context: core.Context
    has_impressions: bool
    has_details: bool


class BulkApi:
    """The endpoint getFlags."""

    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    def get_flags(self, request: Request) -> Response | Awaitable[Response]:
        environment = self._environments.of(request)
        settings = environment.decision_settings()
        etag = etag_of(request, environment, settings, "getFlags")
        if etag and is_known(request, etag):
            return not_modified(etag)
        fields = json_object(request.body)
        has_impressions = boolean(fields, "impressions")
        keys, has_details = feature_keys("featureKeys", fields.get("featureKeys")), boolean(fields, "details")
        context = with_address(core.context_from_json(fields, user_id(fields)))
        asked = Asked(tuple(settings.features) if keys is None else keys, context, has_impressions, has_details)
        return self._decide_all(request, environment, settings, asked, None if has_impressions else etag)

    async def _decide_all(
        self,
        request: Request,
        environment: Environment,
        settings: core.Settings,
        asked: Asked,
        etag: bytes | None,
    ) -> Response:
        entries: list[bytes] = []
        recorder = Recorder(environment, settings, asked.context)

        def add(decision: core.Decision) -> None:
            environment.counts.decided(asked.context.user_id, decision)
            body = with_details(settings, decision) if asked.has_details else decision.body
            entries.append(b"%b:%b" % (encoded(decision.feature_key), body))
            if asked.has_impressions:
                recorder.add(decision)

        record = partial(recorder.append, request)
        keeps = asked.has_impressions
        await environment.evaluator.decide_many(settings, asked.keys, asked.context, add, record, keeps=keeps)
        return await respond(request, b'{"flags":{%b}}' % b",".join(entries), etag)


class Recorder:
    """The events of several decisions, which are appended to the queue at once."""

    def __init__(self, environment: Environment, settings: core.Settings, context: core.Context) -> None:
        self._environment = environment
        self._settings = settings
        self._context = context
        self._documents: list[bytes] = []
        self._count = 0

    def add(self, decision: core.Decision) -> None:
        documents, count = self._environment.evaluator.event_documents(self._settings, self._context, decision)
        if count:
            self._documents.append(documents)
            self._count += count

    def append(self, request: Request) -> Gate | None:
        """Append the events. The response waits until they are stored, if EVENT_ACK says so. Return the gate."""
        if self._count:
            append_impressions(self._environment, request, b"\n".join(self._documents), self._count)
        return request.gate


def etag_of(
    request: Request, environment: Environment, settings: core.Settings, endpoint: str, more: tuple[str, ...] = ()
) -> bytes:
    """Return the ETag of the response of an endpoint to a request. The response depends on `more` as well.

    FROM_BODY: it is not known before the decisions.
    """
    evaluator, snapshot = environment.evaluator, environment.mirror.current
    if snapshot is None or not evaluator.is_pure(settings):
        return FROM_BODY
    begun = _begun(snapshot.digest, evaluator.facts_versions, endpoint, bool(more))
    return _etag(begun, orjson.dumps(more) + request.body if more else request.body)


def not_modified(etag: bytes) -> Response:
    return Response(304, lines=b"ETag: %b\r\n" % etag)


async def respond(request: Request, body: bytes, etag: bytes | None) -> Response:
    """Return the response, compressed if the client accepts that. With None it has no ETag."""
    headers = [(b"Vary", b"Accept-Encoding"), (b"Cache-Control", b"no-cache")]
    if etag is not None:
        if not etag:
            etag = _etag(_begun(), body)
            if is_known(request, etag):
                return not_modified(etag)
        headers.append((b"ETag", etag))
    is_large = len(body) > SMALLEST_COMPRESSED_BYTES
    if is_large and accepts_gzip(request.list_header(b"accept-encoding").decode("latin-1")):
        headers.append((b"Content-Encoding", b"gzip"))
        body = _compress(body) if len(body) <= LARGEST_INLINE_BYTES else await asyncio.to_thread(_compress, body)
    return Response(200, body, JSON, headers)


@lru_cache(maxsize=MAX_BEGUN)
def _begun(*facts: str | bool | tuple[str, str]) -> hashlib.blake2b:
    """Return a digest of facts that the ETags of many requests have in common."""
    return hashlib.blake2b(orjson.dumps(facts), digest_size=12)


def _etag(begun: hashlib.blake2b, rest: bytes) -> bytes:
    """Return the ETag of a digest, which is not changed, and more. It is weak: compressed responses have the same."""
    digest = begun.copy()
    digest.update(rest)
    return b'W/"%b"' % digest.hexdigest().encode()


def is_known(request: Request, etag: bytes) -> bool:
    """Return whether If-None-Match lists the ETag. Weak marks and missing quotes are ignored, `*` matches nothing."""
    if (IF_NONE_MATCH, etag) in request.headers:  # as nearly all clients send it
        return True
    given = request.list_header(b"if-none-match")
    return any(_opaque(item) == _opaque(etag) for item in given.split(b","))


def _opaque(etag: bytes) -> bytes:
    return etag.strip().removeprefix(b"W/").strip(b'"')


def _compress(body: bytes) -> bytes:
    compressor = zlib.compressobj(level=1, wbits=_GZIP)
    return compressor.compress(body) + compressor.flush()
