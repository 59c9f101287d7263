"""The account's settings: fetched, compiled once per change, mirrored to and from the store.

Everything that changes `SettingsMirror.current` is in this file.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tornado_gateway import core
from tornado_gateway.errors import ACCOUNT_OPTIONS, GatewayError, UpstreamError
from tornado_gateway.logs import once
from tornado_gateway.settings.compilation import CompiledDocument, Fingerprints, compile_document, describe_change
from tornado_gateway.settings.documents import SettingsDocument, read_document
from tornado_gateway.settings.pacing import REST_SECONDS, URGENT_REST_SECONDS, ReplacedSettings, throttled
from tornado_gateway.settings.pin import Pinning
from tornado_gateway.settings.polling import Poller, Refreshes
from tornado_gateway.settings.stored import StoredSettings
from tornado_gateway.store.interfaces import StateStore, StoredDocument
from tornado_gateway.store.versions import Pin, digest_of
from tornado_gateway.tasks import end_tasks

logger = logging.getLogger(__name__)

START_PATIENCE_SECONDS = 2.0  # at a start with stored settings, for the poll of another worker of the same start
POLL = "poll"  # the cause of a refresh that no request asked for

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


class _Origin(NamedTuple):
    """Where documents come from, and the name of that in `Snapshot.source`. `bootstrap`: a file to start from."""

    fetch: Fetch
    source: str
    bootstrap: Path | None


class SettingsMirror:
    """Keeps `current`: None until there are usable settings, then always the last good ones.

    `fetch` gets the document from upstream (or reads the file, for a gateway without upstream). `bootstrap` is a file
    to start from if neither upstream nor the store has a document. `on_poll` is called after each poll with its outcome
    ("changed", "unchanged" or "failed"). `check` raises SettingsError for settings that may not be used here. `phase`
    is the share of the first interval that is left out, so that environments do not poll at the same time. Log lines
    name the `account_options` if the key is rejected.

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
        account_options: str = ACCOUNT_OPTIONS,
    ) -> None:
        self.current: Snapshot | None = None
        self.last_poll = LastPoll()
        self.loaded = asyncio.Event()  # set once there is a `current`
        self._subscribers: list[Subscriber] = []
        self._stored = StoredSettings(state, name, owner)
        self.pinning = Pinning(self._pin_ended)
        self._applying = asyncio.Lock()  # while a document is stored and used, so that the last one stored is used last
        self._on_poll = on_poll
        self._origin = _Origin(fetch, source, bootstrap)
        self._compile_checked = partial(_compile_checked, sdk=sdk, check=check)
        self._confirmed: float | None = None  # monotonic: when upstream last confirmed that `current` is current
        self._rejected: tuple[bytes, core.SettingsError] | None = None
        self._refreshes = Refreshes()
        self._replaced = ReplacedSettings()
        self._poller = Poller(self, self._stored, poll_seconds, start_patience_seconds, phase, account_options)

    def subscribe(self, *subscribers: Subscriber) -> None:
        """Call the subscribers, in order, with each new snapshot."""
        self._subscribers += subscribers

    async def start(self, wait_seconds: float) -> None:
        """Start from the stored settings and poll once; wait for that poll only if nothing usable is stored."""
        stored = await self._load_stored()
        if self.current is None and self._origin.bootstrap is not None:
            await self._load_bootstrap(self._origin.bootstrap)
        await self._poller.start(wait_seconds)
        if self.current is None and self._origin.source == "file" and stored is not None:
            await self.use_stored(stored)

    async def stop(self) -> None:
        await end_tasks(*self._poller.stop(), *self._replaced.tasks, self._refreshes.task, self.pinning.stop())
        await self._stored.release_lease()

    def forget(self) -> None:
        """Free the settings of a removed environment, because garbage collection never frees parts of cycles here."""
        if self.current is not None:
            self.release(self.current.settings)
            self.current = None
        self._subscribers.clear()

    @property
    def has_tried(self) -> bool:
        """Whether the first attempt to get settings has ended."""
        return self._poller.failures.tried.is_set()

    def age_seconds(self) -> float | None:
        """Return the time since upstream confirmed the current settings; None before there are any."""
        return None if self._confirmed is None else max(0.0, time.monotonic() - self._confirmed)

    @property
    def stored_version(self) -> int | None:
        """The stored version of the current settings, 0 if they are not stored; None before there are any."""
        return None if self.current is None else self.current.version

    @property
    def is_newer_than_stored(self) -> bool:
        """Whether the settings were fetched while the store was down, so that the stored ones may be older."""
        return self.current is not None and self.current.version == 0 and self.current.source == "upstream"

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
            self._refreshes.start(self._refresh(self._origin.fetch, POLL))
        return await self._refreshes.outcome()

    async def pull(self, fetch: Fetch, cause: str = "pull") -> bool:
        """Refresh with a request that starts after this call, because an earlier one may return an older document.

        The `cause` is kept with a new document.
        """
        before = self._refreshes.count
        if self._refreshes.is_running:
            await self._refreshes.outcome()
        if self._refreshes.count == before:
            self._refreshes.start(self._refresh(fetch, cause))
        return await self._refreshes.outcome()

    def running_seconds(self) -> float | None:
        """Return for how long the current request has been running; None if there is none."""
        return max(0.0, time.monotonic() - self._refreshes.started_at) if self._refreshes.is_running else None

    async def _refresh(self, fetch: Fetch, cause: str) -> bool:
        before = self.current
        try:
            await self._accept(await fetch(), cause if self._origin.source != "file" else "file")
        except (GatewayError, OSError, core.SettingsError) as error:
            self._on_poll("failed")
            self._poll_failed(error)
            return False
        is_same = before is not None and self.current is not None and self.current.settings is before.settings
        self._on_poll("unchanged" if is_same else "changed")
        self._poll_succeeded()
        return True

    async def _accept(self, document: bytes, cause: str) -> None:
        """Store a fetched document and make it the current one, unless a version is pinned.

        Raise SettingsError and change nothing if it is not usable.
        """
        if not await self._is_known(document):
            compiled = await self._compile_new(document)
            async with self._applying:
                await self._use_saved(compiled, document, await self._stored.save(document, cause))
        elif self.current is None or self.current.version:
            await self._stored.confirm(document, cause)
        else:
            async with self._applying:
                stored = await self._stored.save(document, cause, is_repeated=True)
                if stored is not None:
                    await self._apply(stored)
        self._confirmed = time.monotonic()

    async def _is_known(self, document: bytes) -> bool:
        if self.pinning.pin is not None:
            return await asyncio.to_thread(digest_of, document) == self.pinning.latest
        return self.current is not None and document == self.current.document

    async def _compile_new(self, document: bytes) -> CompiledDocument:
        if self._rejected is not None and document == self._rejected[0]:
            raise self._rejected[1]
        try:
            compiled = await self.compile(document)
        except core.SettingsError as error:
            self._rejected = document, error
            raise
        self._rejected = None
        return compiled

    async def _use_saved(self, compiled: CompiledDocument, document: bytes, stored: StoredDocument | None) -> None:
        """Use a document that was saved. While a version is pinned, or the store failed, use that one instead."""
        if stored is not None:
            self.pinning.follow(stored)
        if self.pinning.pin is None:
            self._use(compiled, document, 0 if stored is None else stored.version, self._origin.source)
            return
        self.pinning.hold(compiled.digest)
        self.release(compiled.settings)
        if stored is not None:
            await self._apply(stored)

    async def compile(self, document: bytes, rest_seconds: float = REST_SECONDS) -> CompiledDocument:
        """Compile in a thread, at a slow pace if there are settings to serve requests with meanwhile.

        Raise SettingsError if the document cannot be used here.
        """
        yield_point = throttled(rest_seconds) if self.current else core.never_yield
        compile_here = partial(self._compile_checked, document, yield_point)
        return await asyncio.get_running_loop().run_in_executor(None, compile_here)

    def release(self, settings: core.Settings) -> None:
        """Free compiled settings gradually once no request uses them."""
        self._replaced.release(settings)

    def _use(self, compiled: CompiledDocument, document: bytes, version: int, source: str) -> None:
        before = self.current
        settings, digest, served, fingerprints = compiled
        self.current = Snapshot(settings, document, digest, served, fingerprints, version, source)
        change = describe_change(before.fingerprints if before else None, fingerprints)
        logger.info("settings %s from %s: %s", digest, source, change)
        if before is not None:
            self.release(before.settings)
        for subscriber in self._subscribers:
            subscriber(self.current)
        self.loaded.set()
        self._poller.failures.tried.set()

    def _poll_succeeded(self) -> None:
        now, since = time.monotonic(), self.last_poll.failing_since
        if since is not None:
            logger.error(
                "Settings refresh succeeded after failing for %.0f s.", now - since, extra=once("settings are back")
            )
        self.last_poll = LastPoll(at=time.time(), instance=self._stored.owner, moment=now)
        self._poller.reset()

    def _poll_failed(self, error: Exception) -> None:
        now = time.monotonic()
        settings = self.current.settings if self.current else None
        is_reported = self._origin.source == "file" and not self.has_tried  # by the start, which may fail
        reason = self._poller.failures.add(error, settings, self.age_seconds(), is_logged=not is_reported)
        since = now if self.last_poll.failing_since is None else self.last_poll.failing_since
        status = error.status if isinstance(error, UpstreamError) else None
        self.last_poll = LastPoll(time.time(), self._stored.owner, reason, now, since, status)

    # --- Stored settings ---

    async def use_stored(self, stored: StoredDocument) -> None:
        """Use a stored document, unless it cannot be used."""
        async with self._applying:
            await self._apply(stored)

    async def _apply(self, stored: StoredDocument) -> None:
        self.pinning.follow(stored)
        if self.current is not None and stored.body == self.current.document:  # two workers have fetched the same
            self.current = replace(self.current, version=stored.version)
            return
        try:
            compiled = await self.compile(stored.body, REST_SECONDS if stored.pin is None else URGENT_REST_SECONDS)
        except core.SettingsError as error:
            logger.error("Stored settings could not be used: %s", error, extra=once(f"stored settings {error}"))
            return
        self._use(compiled, stored.body, stored.version, "store")
        self._confirmed = time.monotonic() - max(0.0, time.time() - stored.saved_at)

    async def _pin_ended(self, pin: Pin) -> None:
        """Return to the latest settings. If the store fails, get them from upstream."""
        if not await self._stored.unpin(pin):
            self.pinning.forget()
            await self.refresh()

    async def _load_stored(self) -> StoredDocument | None:
        """Load the stored settings, and use them at once unless they are a copy of a file, which may be newer."""
        stored = await self._stored.load()
        if stored is not None and (self._origin.source != "file" or stored.pin is not None):
            await self.use_stored(stored)
        return stored

    async def _load_bootstrap(self, path: Path) -> None:
        try:
            document = read_document(path)
            compiled = await self.compile(document)
        except (OSError, core.SettingsError) as error:
            logger.error("Settings file %s could not be used: %s", path, error, extra=once(f"file {error}"))
            return
        self._use(compiled, document, 0, "file")
        self._confirmed = time.monotonic() - max(0.0, time.time() - path.stat().st_mtime)


def _compile_checked(
    document: bytes, yield_point: Callable[[], None], sdk: core.Sdk, check: Callable[[core.Settings], None]
) -> CompiledDocument:
    compiled = compile_document(document, sdk, yield_point)
    check(compiled.settings)
    return compiled
