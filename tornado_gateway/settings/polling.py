"""When a worker gets settings: the polls, their lease and retries, and the documents that other workers stored."""

import asyncio
import logging
import random
import time
from collections.abc import Coroutine
from typing import Protocol

from tornado_gateway.backoff import Backoff
from tornado_gateway.errors import StoreError
from tornado_gateway.settings.failures import RETRY_SECONDS, Failures
from tornado_gateway.settings.stored import StoredSettings
from tornado_gateway.store.interfaces import StoredDocument
from tornado_gateway.tasks import Periodic, SharedResult, wait_at_most

logger = logging.getLogger(__name__)

POLL_JITTER = 0.1
STALE_INTERVALS = 2.5  # without a confirmation for this long, a worker polls without the lease
STALE_MARGIN_SECONDS = 5.0  # more than a slow poll takes, so that very short intervals do not make all workers poll
AWAY_INTERVALS = 2.0  # after a failed poll, long enough for every other worker to acquire the lease
START_CHECK_SECONDS = 0.25  # between two checks for that poll


class Polled(Protocol):
    """The mirror, as its poller uses it."""

    loaded: asyncio.Event

    @property
    def stored_version(self) -> int | None:
        """The stored version of the current settings, 0 if they are not stored; None before there are any."""

    @property
    def is_newer_than_stored(self) -> bool: ...

    def age_seconds(self) -> float | None: ...

    async def see_confirmation(self) -> bool: ...

    async def refresh(self) -> bool: ...

    async def use_stored(self, stored: StoredDocument) -> None: ...


class Refreshes:
    """The last request for settings. Callers that need no newer one share it."""

    def __init__(self) -> None:
        self._last: SharedResult[bool] | None = None
        self.count = 0  # of requests so far
        self.started_at = 0.0  # monotonic

    @property
    def task(self) -> asyncio.Task[bool] | None:
        return None if self._last is None else self._last.task

    @property
    def is_running(self) -> bool:
        return self._last is not None and not self._last.task.done()

    def start(self, refresh: Coroutine[None, None, bool]) -> None:
        self.count += 1
        self.started_at = time.monotonic()
        self._last = SharedResult(refresh)

    async def outcome(self) -> bool:
        """Wait for the last request."""
        return self._last is not None and await self._last.outcome()


class Poller:
    """The tasks of a mirror: they decide when this worker polls, and use documents that other workers stored."""

    def __init__(
        self,
        mirror: Polled,
        stored: StoredSettings,
        poll_seconds: float,
        start_patience_seconds: float,
        phase: float,
        account_options: str,
    ) -> None:
        self.failures = Failures(poll_seconds, account_options)
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
        if self._mirror.stored_version is None:
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
        has_settings = self._mirror.stored_version is not None
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
            if mirror.stored_version is None:
                await wait_at_most(mirror.loaded, self.failures.retry_seconds)
            else:
                await asyncio.sleep(self.failures.retry_seconds)
            if mirror.stored_version is not None and await self._is_confirmed_elsewhere():
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
        seen = mirror.stored_version or 0
        while True:
            try:
                stored = await self._stored.wait_for_change(seen)
            except StoreError as error:
                logger.info("Stored settings could not be watched, retrying: %s", error)
                await asyncio.sleep(backoff.next())
                continue
            backoff.reset()
            seen = stored.version  # also of a document that cannot be used: it is tried once
            if mirror.is_newer_than_stored and stored.pin is None:
                await mirror.refresh()
            elif stored.version != mirror.stored_version:
                await mirror.use_stored(stored)
