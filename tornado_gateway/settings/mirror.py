"""The account's settings: fetched, compiled once per change, mirrored to and from the store.

Everything that changes `SettingsMirror.current` is in this file.
"""

import asyncio
import gc
import hashlib
import logging
import random
import re
import time
import weakref
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from http.client import responses
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tornado_gateway import core
from tornado_gateway.backoff import Backoff
from tornado_gateway.errors import GatewayError, StoreError, UpstreamError
from tornado_gateway.settings.documents import Published, publish
from tornado_gateway.settings.pacing import (
    YieldPoint,
    empty_gradually,
    never_yield,
    parse,
    release_gradually,
    throttled,
)
from tornado_gateway.settings.timers import SteadyCallback
from tornado_gateway.store.interfaces import Confirmation, StateStore, StoredDocument

logger = logging.getLogger(__name__)

POLL_JITTER = 0.1
SHOWN_CHANGES = 20  # features that a line of the log names
LEASE_NAME = "poll"
STALE_INTERVALS = 2.5  # without a confirmation for this long, a worker polls whoever holds the lease
STALE_MARGIN_SECONDS = 5.0  # more than a slow poll takes, so that very short intervals do not make all workers poll
AWAY_INTERVALS = 2.0  # after a failed poll, long enough for every other worker to acquire the lease
RETRY_SECONDS = 1.0  # after the first failed poll; later ones back off up to the polling interval
START_PATIENCE_SECONDS = 2.0  # at a start with stored settings, for the poll of another worker of the same start
START_CHECK_SECONDS = 0.25  # between two checks for it
REPEAT_LOG_SECONDS = 60.0  # between two log lines about the same failure
LONGEST_REASON = 1000  # characters; VWO and the operating system have a part in its text

Fetch = Callable[[], Awaitable[bytes]]
Fingerprints = Mapping[str, int]  # of each feature by its key


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of the settings, compiled. `source` is "upstream", "store" or "file"; `digest` names the bytes.

    `version` is that of the stored document, 0 if it is not stored.
    """

    settings: core.Settings
    document: bytes
    digest: str
    published: Published
    fingerprints: Fingerprints
    version: int
    source: str


@dataclass(frozen=True, slots=True)
class LastPoll:
    """The last attempt to get settings, by this or another process.

    `at` is in unix seconds, for people. Durations use the monotonic clock: `moment`, and `failing_since`.
    """

    at: float | None = None
    instance: str | None = None
    error: str | None = None
    moment: float | None = None
    failing_since: float | None = None

    def age_seconds(self) -> float | None:
        return None if self.moment is None else max(0.0, time.monotonic() - self.moment)


class SettingsMirror:
    """Keeps `current`: None until there are usable settings, then always the last good ones.

    `fetch` gets the document from upstream (or reads the file, for a gateway without upstream). `bootstrap` is a file
    to start from when neither upstream nor the store has a document.

    Among all workers of a store the holder of a lease polls regularly; the others take the document that it stored.
    The lease is only a hint to avoid duplicate polls. A worker polls without it at its start, as long as it has no
    settings, and when no worker has confirmed the settings for some intervals. A worker whose poll fails gives the
    lease up, because another one may still reach upstream.
    """

    def __init__(
        self,
        state: StateStore,
        fetch: Fetch,
        *,
        name: str,
        owner: str,
        source: str,
        poll_seconds: float,
        sdk: core.Sdk,
        bootstrap: Path | None = None,
        start_patience_seconds: float = START_PATIENCE_SECONDS,
    ) -> None:
        self.current: Snapshot | None = None
        self.last_poll = LastPoll()
        self.loaded = asyncio.Event()  # set once there is a `current`
        self.on_change: list[Callable[[Snapshot], None]] = []
        self.on_poll: Callable[[str], None] = lambda outcome: None  # "changed", "unchanged" or "failed"
        self._state = state
        self._fetch = fetch
        self._name = name
        self._owner = owner
        self._source = source
        self._poll_seconds = poll_seconds
        self._sdk = sdk
        self._bootstrap = bootstrap
        self._start_patience_seconds = start_patience_seconds
        self._confirmed: float | None = None  # monotonic: when upstream last confirmed that `current` is current
        self._known_confirmation: Confirmation | None = None  # the last one seen in the store
        self._checked = time.monotonic()  # when the store was last checked for a confirmation
        self._away_until = 0.0  # monotonic: until then, leave the lease to others
        self._backoff = Backoff(RETRY_SECONDS, max(RETRY_SECONDS, poll_seconds))
        self._retry_seconds = 0.0
        self._logged = ("", True), 0.0  # the last logged failure, if that was without settings, and when it was
        self._refused: tuple[bytes, core.SettingsError] | None = None
        self._tried = asyncio.Event()  # set once there are settings, or the first attempt has failed
        self._polling: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[bool] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._letting_go: set[asyncio.Task[None]] = set()
        self._timer = SteadyCallback(self._poll_regularly, poll_seconds * 1000, jitter=POLL_JITTER)

    async def start(self, wait_seconds: float) -> None:
        """Start from the stored settings and poll once; wait for that poll only if nothing usable is stored."""
        if self._source != "file":  # a file is at hand at once, and what was stored of it may be old
            await self._load_stored()
        if self.current is None and self._bootstrap is not None:
            await self._load_bootstrap(self._bootstrap)
        self._polling = asyncio.create_task(self._poll_at_start())
        self._watching = asyncio.create_task(self._watch())
        if self.current is None:
            await _wait(self._tried, wait_seconds)
        self._timer.start()

    async def stop(self) -> None:
        self._timer.stop()
        tasks = [
            task for task in (self._watching, self._polling, self._refreshing, *self._letting_go) if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._release_lease()

    def age_seconds(self) -> float | None:
        """How long ago upstream confirmed the current settings; None before there are any."""
        return None if self._confirmed is None else max(0.0, time.monotonic() - self._confirmed)

    # --- Whose turn it is ---

    def _poll_regularly(self) -> None:
        if self._polling is None or self._polling.done():  # else a poll is being retried
            self._polling = asyncio.create_task(self._poll())

    async def _poll(self) -> None:
        """Poll if it is this worker's turn. If the turn is not known, poll as well: freshness wins."""
        try:
            await self._see_confirmation()
            is_away = time.monotonic() < self._away_until
            is_turn = self._is_stale() or (not is_away and await self._acquire_lease())
        except StoreError as error:
            logger.info("polling without a lease: %s", error)
            is_turn = True
        if is_turn:
            await self._refresh_with_retries()

    async def _poll_at_start(self) -> None:
        """Poll once, whoever holds the lease: its holder may be dead, or may not reach upstream.

        Of workers that start together with stored settings one polls, if it is quick enough.
        """
        try:
            if self.current is not None and not await self._acquire_lease() and await self._is_confirmed_soon():
                return
        except StoreError as error:
            logger.info("polling without a lease: %s", error)
        await self._refresh_with_retries()

    async def _is_confirmed_soon(self) -> bool:
        until = time.monotonic() + self._start_patience_seconds * random.uniform(0.5, 1.0)
        while time.monotonic() < until:
            await asyncio.sleep(START_CHECK_SECONDS)
            if await self._see_confirmation():
                return True
        return False

    async def _refresh_with_retries(self) -> None:
        """Refresh until that succeeds or another worker has confirmed the settings. The retries need no lease."""
        self._backoff.reset()
        while not await self.refresh():
            self._away_until = time.monotonic() + AWAY_INTERVALS * self._poll_seconds
            await self._release_lease()
            if self.current is None:
                await _wait(self.loaded, self._retry_seconds)
            else:
                await asyncio.sleep(self._retry_seconds)
            if self.current is not None and await self._is_confirmed_elsewhere():
                return

    def _is_stale(self) -> bool:
        age = self.age_seconds()
        return age is None or age > STALE_INTERVALS * self._poll_seconds + STALE_MARGIN_SECONDS

    async def _acquire_lease(self) -> bool:
        return await self._state.acquire_lease(LEASE_NAME, self._owner)

    async def _release_lease(self) -> None:
        try:
            await self._state.release_lease(LEASE_NAME, self._owner)
        except StoreError as error:
            logger.info("the poll lease is left to expire: %s", error)

    async def _is_confirmed_elsewhere(self) -> bool:
        try:
            return await self._see_confirmation()
        except StoreError as error:
            logger.debug("the stored settings cannot be checked: %s", error)
            return False

    async def _see_confirmation(self) -> bool:
        """Return whether a worker has confirmed the stored settings since the last call.

        A change says so, not a time: the clocks of other machines, and of this one, may have been set.
        """
        known, checked, now = self._known_confirmation, self._checked, time.monotonic()
        found = self._known_confirmation = await self._state.last_confirmation(self._name)
        self._checked = now
        if found is None or found == known:
            return False
        if found.by != self._owner:
            moment = max(checked, self._confirmed or checked, now - max(0.0, time.time() - found.at))
            self._confirmed = moment
            self.last_poll = LastPoll(at=found.at, instance=found.by, moment=moment)
        return True

    # --- Refreshing ---

    async def refresh(self, fetch: Fetch | None = None) -> bool:
        """Get the document now and use it if it is good. Concurrent calls share one request. False if that failed."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(fetch or self._fetch))
        return await asyncio.shield(self._refreshing)

    async def _refresh(self, fetch: Fetch) -> bool:
        before = self.current
        try:
            document = await fetch()
            await self._accept(document)
        except (GatewayError, OSError, core.SettingsError) as error:
            self.on_poll("failed")
            self._poll_failed(error)
            return False
        is_same = before is not None and self.current is not None and self.current.settings is before.settings
        self.on_poll("unchanged" if is_same else "changed")
        self._poll_succeeded()
        return True

    async def _accept(self, document: bytes) -> None:
        """Make a fetched document the current one. Raises SettingsError and changes nothing if it is not usable."""
        if self.current is None or document != self.current.document:
            if self._refused is not None and document == self._refused[0]:
                raise self._refused[1]
            try:
                compiled = await self._compile(document)
            except core.SettingsError as error:
                self._refused = document, error
                raise
            self._refused = None
            version = await self._save(document)
            self._use(compiled, document, version, self._source)
        elif self.current.version:
            await self._confirm()
        else:
            self.current = replace(self.current, version=await self._save(document))
        self._confirmed = time.monotonic()

    async def _confirm(self) -> None:
        try:
            await self._state.confirm_document(self._name, self._owner)
        except StoreError as error:
            logger.debug("the stored settings cannot be confirmed: %s", error)

    async def _save(self, document: bytes) -> int:
        """Mirror the document to the store; return its version, or 0 if it could not be stored."""
        try:
            stored = await self._state.load_document(self._name)
            if stored is None or stored.body != document:
                stored = await self._state.save_document(self._name, document, self._owner)
            else:
                await self._confirm()
            return stored.version
        except StoreError as error:
            is_repeated = self.current is not None and self.current.document == document
            level = logging.DEBUG if is_repeated else logging.ERROR
            logger.log(level, "the settings cannot be stored, a restart without upstream would have none: %s", error)
            return 0

    async def _compile(self, document: bytes) -> "_Compiled":
        """Off the loop, so that no request waits for it; without current settings all wait for these."""
        yield_point = throttled() if self.current else never_yield
        return await asyncio.get_running_loop().run_in_executor(None, _compile_all, document, self._sdk, yield_point)

    def _use(self, compiled: "_Compiled", document: bytes, version: int, source: str) -> None:
        before = self.current
        self.current = Snapshot(
            compiled.settings,
            document,
            compiled.digest,
            compiled.published,
            compiled.fingerprints,
            version,
            source,
        )
        change = describe_change(before.fingerprints if before else None, compiled.fingerprints)
        logger.info("settings %s from %s: %s", compiled.digest, source, change)
        if before is not None:
            self._let_go(before.settings)
        for tell in self.on_change:
            tell(self.current)
        self.loaded.set()
        self._tried.set()

    def _let_go(self, settings: core.Settings) -> None:
        """Have them freed bit by bit once no request uses them any more: at once it would keep all requests waiting."""
        task = asyncio.create_task(release_gradually(weakref.ref(settings.lifetime), settings.parts()))
        self._letting_go.add(task)
        task.add_done_callback(self._letting_go.discard)

    async def _load_stored(self) -> None:
        try:
            stored = await self._state.load_document(self._name)
            self._known_confirmation = await self._state.last_confirmation(self._name)
        except StoreError as error:
            logger.error("the stored settings cannot be read: %s", error)
            return
        if stored is not None:
            await self._use_stored(stored)

    async def _use_stored(self, stored: StoredDocument) -> None:
        if self.current is not None and stored.body == self.current.document:  # two workers have fetched the same
            self.current = replace(self.current, version=stored.version)
            return
        try:
            compiled = await self._compile(stored.body)
        except core.SettingsError as error:
            logger.error("the stored settings are not usable: %s", error)
            return
        self._use(compiled, stored.body, stored.version, "store")
        self._confirmed = time.monotonic() - max(0.0, time.time() - stored.saved_at)

    async def _load_bootstrap(self, path: Path) -> None:
        try:
            document = path.read_bytes()
            compiled = await self._compile(document)
        except (OSError, core.SettingsError) as error:
            logger.error("the settings file %s is not usable: %s", path, error)
            return
        self._use(compiled, document, 0, "file")
        self._confirmed = time.monotonic() - max(0.0, time.time() - path.stat().st_mtime)

    async def _watch(self) -> None:
        """Take over what another worker stored."""
        backoff = Backoff(RETRY_SECONDS, max(RETRY_SECONDS, self._poll_seconds))
        seen = self.current.version if self.current else 0
        while True:
            try:
                stored = await self._state.wait_for_document(self._name, seen)
            except StoreError as error:
                logger.info("the stored settings cannot be watched: %s", error)
                await asyncio.sleep(backoff.next())
                continue
            backoff.reset()
            seen = stored.version  # also of a document that cannot be used: it is tried once
            if self.current is not None and self.current.version == 0 and self.current.source == "upstream":
                await self.refresh()  # fetched while the store was down: the stored document may be older
            elif self.current is None or stored.version != self.current.version:
                await self._use_stored(stored)

    # --- Outcomes ---

    def _poll_succeeded(self) -> None:
        now, since = time.monotonic(), self.last_poll.failing_since
        if since is not None:
            logger.error("Settings refresh succeeded after failing for %.0f s.", now - since)
        self.last_poll = LastPoll(at=time.time(), instance=self._owner, moment=now)
        self._away_until = 0.0
        self._backoff.reset()

    def _poll_failed(self, error: Exception) -> None:
        now = time.monotonic()
        reason = describe_failure(error)
        self._retry_seconds = self._backoff.next()
        self._log_failure(f"{reason} {ADVICE}" if _is_rejected(error) and self.current is None else reason, now)
        since = now if self.last_poll.failing_since is None else self.last_poll.failing_since
        self.last_poll = LastPoll(time.time(), self._owner, reason, moment=now, failing_since=since)
        self._tried.set()

    def _log_failure(self, reason: str, now: float) -> None:
        """Log a change of state at once, and a failure that repeats once a minute."""
        state = reason, self.current is None
        if self._logged[0] == state and now - self._logged[1] < REPEAT_LOG_SECONDS:
            return
        self._logged = state, now
        if self.current is None:
            logger.error("No settings loaded yet: %s Retrying in %.0f s.", reason, self._retry_seconds)
        else:
            version, age = self.current.settings.version, _duration(self.age_seconds() or 0.0)
            logger.error("Settings refresh failed: %s Continuing with version %s, %s old.", reason, version, age)


ADVICE = "Check ACCOUNT_ID and SDK_KEY."
_REASONS = {
    401: "VWO rejected the SDK key (401).",
    403: "VWO rejected the SDK key (403).",
    429: "VWO limited the request rate (429).",
}


def describe_failure(error: Exception) -> str:
    """Return why settings could not be refreshed, as one or more sentences. Its text is the same for equal failures."""
    if isinstance(error, UpstreamError):
        reason = _REASONS.get(error.status) or _describe_response(error)
    elif isinstance(error, core.SettingsError):
        reason = f"The settings cannot be used: {error}."
    else:
        reason = f"The settings could not be read: {error}."
    return reason[:LONGEST_REASON]


def _is_rejected(error: Exception) -> bool:
    return isinstance(error, UpstreamError) and error.status in (401, 403)


def _describe_response(error: UpstreamError) -> str:
    if not error.status:
        cause = re.sub(r" after \d+ (ms|milliseconds)\b.*", "", error.cause or str(error))  # another number each time
        return f"VWO could not be reached ({cause})."
    return f"VWO returned {error.status} {responses.get(error.status, '')}".rstrip() + "."


def _duration(seconds: float) -> str:
    """Return a duration in its largest unit, for people."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


class _Compiled(NamedTuple):
    """Everything that takes time and depends on the document alone."""

    settings: core.Settings
    digest: str
    published: Published
    fingerprints: Fingerprints


def _compile_all(document: bytes, sdk: core.Sdk, yield_point: YieldPoint) -> _Compiled:
    gc.collect(1)  # what is garbage by now shall not be kept
    with _without_collector():
        parsed = _parse(document, yield_point)
        try:
            settings = _compile(document, parsed, sdk, yield_point)
            digest = hashlib.sha256(document).hexdigest()[:16]
            published = publish(document, parsed, yield_point)
            compiled = _Compiled(settings, digest, published, fingerprints_of(parsed, yield_point))
        finally:
            empty_gradually(parsed, yield_point)
        # Compiled settings have no cycles, and the collector would keep the loop waiting while it looks for some.
        gc.freeze()
    return compiled


def compile_document(document: bytes, sdk: core.Sdk) -> core.Settings:
    """Parse and compile. Raises SettingsError, also for bytes that are not JSON."""
    with _without_collector():
        return _compile(document, _parse(document, never_yield), sdk, never_yield)


def _parse(document: bytes, yield_point: YieldPoint) -> Any:
    try:
        return parse(document, yield_point)
    except orjson.JSONDecodeError as error:
        raise core.SettingsError((f"the settings document is not JSON: {error}",)) from error


def _compile(document: bytes, parsed: Any, sdk: core.Sdk, yield_point: YieldPoint) -> core.Settings:
    """The settings hold the bytes instead of what was parsed from them, which takes five times as much memory."""
    return core.compile_settings(parsed, sdk=sdk, yield_point=yield_point, read_again=partial(orjson.loads, document))


@contextmanager
def _without_collector() -> Iterator[None]:
    """All that a compilation makes stays alive: looking for garbage in between doubles its time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def fingerprints_of(document: Mapping[str, Any], yield_point: YieldPoint = never_yield) -> Fingerprints:
    """Each feature with the campaigns of its rules: what its decisions are made from, but for groups and holdouts."""
    campaigns = {campaign["id"]: campaign for campaign in document["campaigns"]}
    fingerprints: dict[str, int] = {}
    for feature in document["features"]:
        linked = [campaigns.get(rule["campaignId"]) for rule in feature["rules"]]
        fingerprints.setdefault(feature["key"], _fingerprint([feature, *linked]))
        yield_point()
    return fingerprints


def _fingerprint(part: object) -> int:
    try:
        return hash(orjson.dumps(part, option=orjson.OPT_SORT_KEYS))
    except TypeError:  # nested more deeply than anybody writes: its changes go unmentioned
        return 0


def describe_change(before: Fingerprints | None, after: Fingerprints) -> str:
    """What an operator wants to read in the log when settings change."""
    if before is None:
        return f"{len(after)} features"
    parts = [
        *(f"+{key}" for key in sorted(after.keys() - before.keys())),
        *(f"-{key}" for key in sorted(before.keys() - after.keys())),
        *(f"~{key}" for key in sorted(key for key, print_ in after.items() if before.get(key, print_) != print_)),
    ]
    if len(parts) > SHOWN_CHANGES:
        parts[SHOWN_CHANGES:] = [f"and {len(parts) - SHOWN_CHANGES} more"]
    return f"{len(after)} features" + (f" ({', '.join(parts)})" if parts else "")


def document_name(account_id: str, sdk_key: str, dialect: str) -> str:
    """Where the store keeps a document: one for each account, environment and dialect. Holds no secret."""
    return f"settings:{account_id}:{zlib.crc32(sdk_key.encode()):08x}:{dialect}"
