"""The account's settings: fetched, compiled once per change, mirrored to and from the store.

Everything that changes `SettingsMirror.current` is in this file.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tornado_gateway import core
from tornado_gateway.backoff import Backoff
from tornado_gateway.errors import GatewayError, StoreError, UpstreamError
from tornado_gateway.settings.compilation import CompiledDocument, Fingerprints, compile_document, describe_change
from tornado_gateway.settings.documents import SettingsDocument, read_document
from tornado_gateway.settings.failures import RETRY_SECONDS, Failures
from tornado_gateway.settings.pacing import ReplacedSettings, throttled
from tornado_gateway.settings.stored import StoredSettings
from tornado_gateway.store.interfaces import StateStore, StoredDocument
from tornado_gateway.tasks import Periodic, end_tasks, wait_at_most

logger = logging.getLogger(__name__)

POLL_JITTER = 0.1
STALE_INTERVALS = 2.5  # without a confirmation for this long, a worker polls without the lease
STALE_MARGIN_SECONDS = 5.0  # more than a slow poll takes, so that very short intervals do not make all workers poll
AWAY_INTERVALS = 2.0  # after a failed poll, long enough for every other worker to acquire the lease
START_PATIENCE_SECONDS = 2.0  # at a start with stored settings, for the poll of another worker of the same start
START_CHECK_SECONDS = 0.25  # between two checks for that poll

Fetch = Callable[[], Awaitable[bytes]]
Subscriber = Callable[["Snapshot"], None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of the settings, compiled. `source` is "upstream", "store" or "file"; `digest` names the bytes.

    `version` is that of the stored document, 0 if it is not stored. `served` is the document for SDKs.
    """

    settings: core.Settings
    document: bytes
    digest: str
    served: SettingsDocument
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
    status: int | None = None  # of VWO, 0 without a response; None if the error is not one of VWO

    def age_seconds(self) -> float | None:
        return None if self.moment is None else max(0.0, time.monotonic() - self.moment)


class SettingsMirror:
    """Keeps `current`: None until there are usable settings, then always the last good ones.

    `fetch` gets the document from upstream (or reads the file, for a gateway without upstream). `bootstrap` is a file
    to start from if neither upstream nor the store has a document. `on_poll` is called after each poll with its outcome
    ("changed", "unchanged" or "failed"). `check` raises SettingsError for settings that may not be used here. `phase`
    is the share of the first interval that is left out, so that environments do not poll at the same time.

    Among all workers of a store the holder of a lease polls regularly; the others use the document that it stored.
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
        on_poll: Callable[[str], None] = lambda outcome: None,
        check: Callable[[core.Settings], None] = lambda settings: None,
        phase: float = 0.0,
    ) -> None:
        self.current: Snapshot | None = None
        self.last_poll = LastPoll()
        self.loaded = asyncio.Event()  # set once there is a `current`
        self._subscribers: list[Subscriber] = []
        self._stored = StoredSettings(state, name, owner)
        self._on_poll = on_poll
        self._fetch = fetch
        self._source = source
        self._compile_checked = partial(_compile_checked, sdk=sdk, check=check)
        self._bootstrap = bootstrap
        self._confirmed: float | None = None  # monotonic: when upstream last confirmed that `current` is current
        self._rejected: tuple[bytes, core.SettingsError] | None = None
        self._refreshes = _Refreshes()
        self._replaced = ReplacedSettings()
        self._poller = _Poller(self, self._stored, poll_seconds, start_patience_seconds, phase)

    def subscribe(self, *subscribers: Subscriber) -> None:
        """Call the subscribers, in order, with each new snapshot."""
        self._subscribers += subscribers

    async def start(self, wait_seconds: float) -> None:
        """Start from the stored settings and poll once; wait for that poll only if nothing usable is stored."""
        if self._source != "file":  # the file can be read at once, and a stored copy of it may be outdated
            await self._load_stored()
        if self.current is None and self._bootstrap is not None:
            await self._load_bootstrap(self._bootstrap)
        await self._poller.start(wait_seconds)

    async def stop(self) -> None:
        await end_tasks(*self._poller.stop(), *self._replaced.tasks, self._refreshes.task)
        await self._stored.release_lease()

    def forget(self) -> None:
        """Free the settings of a removed environment, because garbage collection never frees parts of cycles here."""
        if self.current is not None:
            self._replaced.release(self.current.settings)
            self.current = None
        self._subscribers.clear()

    @property
    def has_tried(self) -> bool:
        """Whether the first attempt to get settings has ended."""
        return self._poller.failures.tried.is_set()

    def age_seconds(self) -> float | None:
        """Return the time since upstream confirmed the current settings; None before there are any."""
        return None if self._confirmed is None else max(0.0, time.monotonic() - self._confirmed)

    async def see_confirmation(self) -> bool:
        """Return whether a worker has confirmed the stored settings since the last call.

        A change of the confirmation decides, not its time, because clocks of this and other machines may have been set.
        """
        seen = await self._stored.new_confirmation()
        if seen is None:
            return False
        found, checked = seen
        if found.by != self._stored.owner:
            ago = max(0.0, time.time() - found.at)
            moment = max(checked, self._confirmed or checked, time.monotonic() - ago)
            self._confirmed = moment
            self.last_poll = LastPoll(at=found.at, instance=found.by, moment=moment)
        return True

    # --- Refreshing ---

    async def refresh(self) -> bool:
        """Get the document now and use it if it is good. Concurrent calls share one request. False if that failed."""
        if not self._refreshes.is_running:
            self._refreshes.start(self._refresh(self._fetch))
        return await self._refreshes.outcome()

    async def pull(self, fetch: Fetch) -> bool:
        """Refresh with a request that starts after this call, because an earlier one may return an older document."""
        before = self._refreshes.count
        if self._refreshes.is_running:
            await self._refreshes.outcome()
        if self._refreshes.count == before:
            self._refreshes.start(self._refresh(fetch))
        return await self._refreshes.outcome()

    def running_seconds(self) -> float | None:
        """Return for how long the current request has been running; None if there is none."""
        return max(0.0, time.monotonic() - self._refreshes.started_at) if self._refreshes.is_running else None

    async def _refresh(self, fetch: Fetch) -> bool:
        before = self.current
        try:
            await self._accept(await fetch())
        except (GatewayError, OSError, core.SettingsError) as error:
            self._on_poll("failed")
            self._poll_failed(error)
            return False
        is_same = before is not None and self.current is not None and self.current.settings is before.settings
        self._on_poll("unchanged" if is_same else "changed")
        self._poll_succeeded()
        return True

    async def _accept(self, document: bytes) -> None:
        """Make a fetched document the current one. Raise SettingsError and change nothing if it is not usable."""
        if self.current is None or document != self.current.document:
            if self._rejected is not None and document == self._rejected[0]:
                raise self._rejected[1]
            try:
                compiled = await self._compile(document)
            except core.SettingsError as error:
                self._rejected = document, error
                raise
            self._rejected = None
            version = await self._stored.save(document, is_repeated=False)
            self._use(compiled, document, version, self._source)
        elif self.current.version:
            await self._stored.confirm()
        else:
            version = await self._stored.save(document, is_repeated=True)
            self.current = replace(self.current, version=version)
        self._confirmed = time.monotonic()

    async def _compile(self, document: bytes) -> CompiledDocument:
        """Compile in a thread, at a slow pace if there are settings to serve requests with meanwhile."""
        yield_point = throttled() if self.current else core.never_yield
        compile_here = partial(self._compile_checked, document, yield_point)
        return await asyncio.get_running_loop().run_in_executor(None, compile_here)

    def _use(self, compiled: CompiledDocument, document: bytes, version: int, source: str) -> None:
        before = self.current
        settings, digest, served, fingerprints = compiled
        self.current = Snapshot(settings, document, digest, served, fingerprints, version, source)
        change = describe_change(before.fingerprints if before else None, fingerprints)
        logger.info("settings %s from %s: %s", digest, source, change)
        if before is not None:
            self._replaced.release(before.settings)
        for subscriber in self._subscribers:
            subscriber(self.current)
        self.loaded.set()
        self._poller.failures.tried.set()

    def _poll_succeeded(self) -> None:
        now, since = time.monotonic(), self.last_poll.failing_since
        if since is not None:
            logger.error("Settings refresh succeeded after failing for %.0f s.", now - since)
        self.last_poll = LastPoll(at=time.time(), instance=self._stored.owner, moment=now)
        self._poller.reset()

    def _poll_failed(self, error: Exception) -> None:
        now = time.monotonic()
        settings = self.current.settings if self.current else None
        reason = self._poller.failures.add(error, settings, self.age_seconds())
        since = now if self.last_poll.failing_since is None else self.last_poll.failing_since
        status = error.status if isinstance(error, UpstreamError) else None
        self.last_poll = LastPoll(time.time(), self._stored.owner, reason, now, since, status)

    # --- Stored settings ---

    async def use_stored(self, stored: StoredDocument) -> None:
        """Use a stored document, unless it cannot be used."""
        if self.current is not None and stored.body == self.current.document:  # two workers have fetched the same
            self.current = replace(self.current, version=stored.version)
            return
        try:
            compiled = await self._compile(stored.body)
        except core.SettingsError as error:
            logger.error("Stored settings could not be used: %s", error)
            return
        self._use(compiled, stored.body, stored.version, "store")
        self._confirmed = time.monotonic() - max(0.0, time.time() - stored.saved_at)

    async def _load_stored(self) -> None:
        stored = await self._stored.load()
        if stored is not None:
            await self.use_stored(stored)

    async def _load_bootstrap(self, path: Path) -> None:
        try:
            document = read_document(path)
            compiled = await self._compile(document)
        except (OSError, core.SettingsError) as error:
            logger.error("Settings file %s could not be used: %s", path, error)
            return
        self._use(compiled, document, 0, "file")
        self._confirmed = time.monotonic() - max(0.0, time.time() - path.stat().st_mtime)


class _Refreshes:
    """The requests for settings, one at a time."""

    def __init__(self) -> None:
        self.task: asyncio.Task[bool] | None = None
        self.count = 0  # of requests so far
        self.started_at = 0.0  # monotonic

    @property
    def is_running(self) -> bool:
        return self.task is not None and not self.task.done()

    def start(self, refresh: Coroutine[None, None, bool]) -> None:
        self.count += 1
        self.started_at = time.monotonic()
        self.task = asyncio.create_task(refresh)

    async def outcome(self) -> bool:
        """Wait for the last request."""
        return self.task is not None and await asyncio.shield(self.task)


def _compile_checked(
    document: bytes, yield_point: Callable[[], None], sdk: core.Sdk, check: Callable[[core.Settings], None]
) -> CompiledDocument:
    compiled = compile_document(document, sdk, yield_point)
    check(compiled.settings)
    return compiled


class _Poller:
    """The tasks of a mirror: they decide when this worker polls, and use documents that other workers stored."""

    def __init__(
        self,
        mirror: SettingsMirror,
        stored: StoredSettings,
        poll_seconds: float,
        start_patience_seconds: float,
        phase: float,
    ) -> None:
        self.failures = Failures(poll_seconds)
        self._mirror = mirror
        self._stored = stored
        self._poll_seconds = poll_seconds
        self._start_patience_seconds = start_patience_seconds
        self._phase = phase
        self._away_until = 0.0  # monotonic: until then, leave the lease to others
        self._polling: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._timer = Periodic(self._poll_regularly, poll_seconds, jitter=POLL_JITTER)

    async def start(self, wait_seconds: float) -> None:
        self._polling = asyncio.create_task(self._poll_at_start())
        self._watching = asyncio.create_task(self._watch())
        if self._mirror.current is None:
            await wait_at_most(self.failures.tried, wait_seconds)
        self._timer.start(phase=self._phase)

    def stop(self) -> list[asyncio.Task[None] | None]:
        """Stop the timer and return the tasks that may still run."""
        self._timer.stop()
        return [self._watching, self._polling]

    def reset(self) -> None:
        """Forget all failures, after a success."""
        self._away_until = 0.0
        self.failures.reset()

    def _poll_regularly(self) -> None:
        if self._polling is None or self._polling.done():  # otherwise a poll is being retried
            self._polling = asyncio.create_task(self._poll())

    async def _poll(self) -> None:
        """Poll if it is this worker's turn. If the turn is not known, poll as well: freshness wins."""
        try:
            await self._mirror.see_confirmation()
            is_away = time.monotonic() < self._away_until
            is_turn = self._is_stale() or (not is_away and await self._stored.acquire_lease())
        except StoreError as error:
            logger.info("Poll lease could not be acquired, polling without it: %s", error)
            is_turn = True
        if is_turn:
            await self._refresh_with_retries()

    async def _poll_at_start(self) -> None:
        """Poll once, with or without the lease: its holder may be dead, or may not reach upstream.

        If several workers start together with stored settings, one of them polls, unless it is too slow.
        """
        has_settings = self._mirror.current is not None
        try:
            if has_settings and not await self._stored.acquire_lease() and await self._is_confirmed_soon():
                return
        except StoreError as error:
            logger.info("Poll lease could not be acquired, polling without it: %s", error)
        await self._refresh_with_retries()

    async def _is_confirmed_soon(self) -> bool:
        until = time.monotonic() + self._start_patience_seconds * random.uniform(0.5, 1.0)
        while time.monotonic() < until:
            await asyncio.sleep(START_CHECK_SECONDS)
            if await self._mirror.see_confirmation():
                return True
        return False

    async def _refresh_with_retries(self) -> None:
        """Refresh until that succeeds or another worker has confirmed the settings. The retries need no lease."""
        mirror = self._mirror
        self.failures.reset()
        while not await mirror.refresh():
            self._away_until = time.monotonic() + AWAY_INTERVALS * self._poll_seconds
            await self._stored.release_lease()
            if mirror.current is None:
                await wait_at_most(mirror.loaded, self.failures.retry_seconds)
            else:
                await asyncio.sleep(self.failures.retry_seconds)
            if mirror.current is not None and await self._is_confirmed_elsewhere():
                return

    def _is_stale(self) -> bool:
        age = self._mirror.age_seconds()
        return age is None or age > STALE_INTERVALS * self._poll_seconds + STALE_MARGIN_SECONDS

    async def _is_confirmed_elsewhere(self) -> bool:
        try:
            return await self._mirror.see_confirmation()
        except StoreError as error:
            logger.debug("Stored settings could not be checked: %s", error)
            return False

    async def _watch(self) -> None:
        """Use the documents that other workers store."""
        mirror = self._mirror
        backoff = Backoff(RETRY_SECONDS, max(RETRY_SECONDS, self._poll_seconds))
        seen = mirror.current.version if mirror.current else 0
        while True:
            try:
                stored = await self._stored.wait_for_change(seen)
            except StoreError as error:
                logger.info("Stored settings could not be watched, retrying: %s", error)
                await asyncio.sleep(backoff.next())
                continue
            backoff.reset()
            seen = stored.version  # also of a document that cannot be used: it is tried once
            if mirror.current is not None and mirror.current.version == 0 and mirror.current.source == "upstream":
                await mirror.refresh()  # fetched while the store was down: the stored document may be older
            elif mirror.current is None or stored.version != mirror.current.version:
                await mirror.use_stored(stored)
