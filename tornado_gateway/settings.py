"""The account's settings: fetched, compiled once per change, mirrored to and from the store.

Everything that changes `SettingsMirror.current` is in this file.
"""

import asyncio
import gc
import hashlib
import logging
import time
import weakref
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from tornado.ioloop import PeriodicCallback

from . import core
from .errors import GatewayError, StoreError
from .published import Published, publish
from .store import StateStore, StoredDocument
from .turns import Breathe, go_on, let_go, parse, pauses, take_apart

logger = logging.getLogger(__name__)

POLL_JITTER = 0.1
SHOWN_CHANGES = 20  # features that a line of the log names
LEASE_NAME = "poll"
LEASE_INTERVALS = 2.5  # a poller that is silent for so many intervals is replaced by another worker

Fetch = Callable[[], Awaitable[bytes]]
Fingerprints = Mapping[str, int]  # of each feature by its key


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of the settings, compiled. `source` is "upstream", "store" or "file"; `digest` names the bytes."""

    settings: core.Settings
    document: bytes
    digest: str
    published: Published
    fingerprints: Fingerprints
    version: int
    source: str


@dataclass(slots=True)
class LastPoll:
    """What the last attempt to get settings did; times are in unix seconds."""

    at: float | None = None
    error: str | None = None
    failing_since: float | None = None


class SettingsMirror:
    """Keeps `current`: None until there are usable settings, then always the last good ones.

    `fetch` gets the document from upstream (or reads the file, for a gateway without upstream). Among all workers of a
    store only the holder of a lease fetches; the others take what it stored. `bootstrap` is a file to start from when
    neither upstream nor the store has a document.
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
    ) -> None:
        self.current: Snapshot | None = None
        self.confirmed_at: float | None = None  # when upstream last said that `current` is what it has
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
        self._refused: bytes | None = None
        self._first: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[bool] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._letting_go: set[asyncio.Task[None]] = set()
        self._timer = PeriodicCallback(self.poll, poll_seconds * 1000, jitter=POLL_JITTER)

    async def start(self, wait_seconds: float) -> None:
        """Start from what is stored and refresh; waits for the first refresh only if nothing usable is stored."""
        if self._source != "file":  # a file is at hand at once, and what was stored of it may be old
            await self._load_stored()
        if self.current is None and self._bootstrap is not None:
            await self._load_bootstrap(self._bootstrap)
        self._first = asyncio.create_task(self.poll())
        if self.current is None:
            await asyncio.wait([self._first], timeout=wait_seconds)
        self._watching = asyncio.create_task(self._watch())
        self._timer.start()

    async def stop(self) -> None:
        self._timer.stop()
        tasks = [
            task for task in (self._watching, self._first, self._refreshing, *self._letting_go) if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._state.release_lease(LEASE_NAME, self._owner)
        except StoreError as error:
            logger.info("the poll lease is left to expire: %s", error)

    def age_seconds(self, now: float) -> float | None:
        """How long ago upstream confirmed the current settings; None before there are any."""
        return None if self.confirmed_at is None else max(0.0, now - self.confirmed_at)

    async def poll(self) -> None:
        """Refresh if it is this worker's turn; else see how fresh the worker whose turn it is found the settings."""
        try:
            turn = await self._state.acquire_lease(LEASE_NAME, self._owner, LEASE_INTERVALS * self._poll_seconds)
        except StoreError as error:
            logger.info("polling without a lease: %s", error)
            turn = True
        if turn:
            await self.refresh()
        else:
            await self._note_confirmation()

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
            self._poll_failed(str(error))
            return False
        self.on_poll("unchanged" if self.current is before else "changed")
        self._poll_succeeded()
        return True

    async def _accept(self, document: bytes) -> None:
        """Make a fetched document the current one. Raises SettingsError and changes nothing if it is not usable."""
        if self.current is None or document != self.current.document:
            if document == self._refused:
                raise core.SettingsError(("upstream still serves the unusable settings document",))
            try:
                compiled = await self._compile(document)
            except core.SettingsError:
                self._refused = document
                raise
            self._refused = None
            version = await self._save(document)
            self._use(compiled, document, version, self._source)
        else:
            await self._confirm()
        self.confirmed_at = time.time()

    async def _confirm(self) -> None:
        try:
            await self._state.confirm_document(self._name)
        except StoreError as error:
            logger.debug("the stored settings cannot be confirmed: %s", error)

    async def _note_confirmation(self) -> None:
        try:
            confirmed_at = await self._state.confirmed_at(self._name)
        except StoreError as error:
            logger.debug("nothing is known of the poller: %s", error)
            return
        if confirmed_at is not None and self.confirmed_at is not None:
            self.confirmed_at = max(self.confirmed_at, confirmed_at)
            self.last_poll = LastPoll(at=confirmed_at)

    async def _save(self, document: bytes) -> int:
        """Mirror the document to the store; without the store the gateway goes on from memory."""
        try:
            stored = await self._state.load_document(self._name)
            if stored is None or stored.body != document:
                stored = await self._state.save_document(self._name, document)
            return stored.version
        except StoreError as error:
            logger.error("the settings cannot be stored, a restart without upstream would have none: %s", error)
            return self.current.version if self.current else 0

    async def _compile(self, document: bytes) -> "_Compiled":
        """Off the loop, so that no request waits for it; without current settings all wait for these."""
        breathe = pauses() if self.current else go_on
        return await asyncio.get_running_loop().run_in_executor(None, _compile_all, document, self._sdk, breathe)

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

    def _let_go(self, settings: core.Settings) -> None:
        """Have them freed bit by bit once no request uses them any more: at once it would keep all requests waiting."""
        task = asyncio.create_task(let_go(weakref.ref(settings.life), settings.parts()))
        self._letting_go.add(task)
        task.add_done_callback(self._letting_go.discard)

    async def _load_stored(self) -> None:
        try:
            stored = await self._state.load_document(self._name)
        except StoreError as error:
            logger.error("the stored settings cannot be read: %s", error)
            return
        if stored is not None:
            await self._use_stored(stored)

    async def _use_stored(self, stored: StoredDocument) -> None:
        try:
            compiled = await self._compile(stored.body)
        except core.SettingsError as error:
            logger.error("the stored settings are not usable: %s", error)
            return
        self._use(compiled, stored.body, stored.version, "store")
        self.confirmed_at = stored.saved_at

    async def _load_bootstrap(self, path: Path) -> None:
        try:
            document = path.read_bytes()
            compiled = await self._compile(document)
        except (OSError, core.SettingsError) as error:
            logger.error("the settings file %s is not usable: %s", path, error)
            return
        self._use(compiled, document, 0, "file")
        self.confirmed_at = path.stat().st_mtime

    async def _watch(self) -> None:
        """Take over what another worker stored."""
        while True:
            known = self.current.version if self.current else 0
            try:
                stored = await self._state.wait_for_document(self._name, known)
            except StoreError as error:
                logger.info("the stored settings cannot be watched: %s", error)
                await asyncio.sleep(self._poll_seconds)
                continue
            if self.current is None or stored.version != self.current.version:
                await self._use_stored(stored)

    def _poll_succeeded(self) -> None:
        if self.last_poll.failing_since is not None:
            logger.error("settings are refreshed again, after %.0f s", time.time() - self.last_poll.failing_since)
        self.last_poll = LastPoll(at=time.time())

    def _poll_failed(self, reason: str) -> None:
        if self.last_poll.failing_since is None:
            logger.error("settings cannot be refreshed, the last good ones stay in force: %s", reason)
        now = time.time()
        self.last_poll = LastPoll(at=now, error=reason, failing_since=self.last_poll.failing_since or now)


class _Compiled(NamedTuple):
    """Everything that takes time and depends on the document alone."""

    settings: core.Settings
    digest: str
    published: Published
    fingerprints: Fingerprints


def _compile_all(document: bytes, sdk: core.Sdk, breathe: Breathe) -> _Compiled:
    gc.collect(1)  # what is garbage by now shall not be kept
    with _without_collector():
        parsed = _parse(document, breathe)
        try:
            settings = _compile(document, parsed, sdk, breathe)
            digest = hashlib.sha256(document).hexdigest()[:16]
            published = publish(document, parsed, breathe)
            compiled = _Compiled(settings, digest, published, fingerprints_of(parsed, breathe))
        finally:
            take_apart(parsed, breathe)
        # Compiled settings have no cycles, and the collector would keep the loop waiting while it looks for some.
        gc.freeze()
    return compiled


def compile_document(document: bytes, sdk: core.Sdk) -> core.Settings:
    """Parse and compile. Raises SettingsError, also for bytes that are not JSON."""
    with _without_collector():
        return _compile(document, _parse(document, go_on), sdk, go_on)


def _parse(document: bytes, breathe: Breathe) -> Any:
    try:
        return parse(document, breathe)
    except orjson.JSONDecodeError as error:
        raise core.SettingsError((f"the settings document is not JSON: {error}",)) from error


def _compile(document: bytes, parsed: Any, sdk: core.Sdk, breathe: Breathe) -> core.Settings:
    """The settings hold the bytes instead of what was parsed from them, which takes five times as much memory."""
    return core.compile_settings(parsed, sdk=sdk, breathe=breathe, read_again=partial(orjson.loads, document))


@contextmanager
def _without_collector() -> Iterator[None]:
    """All that a compilation makes stays alive: looking for garbage in between doubles its time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def fingerprints_of(document: Mapping[str, Any], breathe: Breathe = go_on) -> Fingerprints:
    """Each feature with the campaigns of its rules: what its decisions are made from, but for groups and holdouts."""
    campaigns = {campaign["id"]: campaign for campaign in document["campaigns"]}
    fingerprints: dict[str, int] = {}
    for feature in document["features"]:
        linked = [campaigns.get(rule["campaignId"]) for rule in feature["rules"]]
        fingerprints.setdefault(feature["key"], _fingerprint([feature, *linked]))
        breathe()
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
