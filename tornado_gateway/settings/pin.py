"""The pin of an environment: a version of the settings that stays in use whatever VWO publishes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tornado_gateway.logs import once
from tornado_gateway.store.interfaces import StoredDocument
from tornado_gateway.store.versions import Pin

logger = logging.getLogger(__name__)


class Pinning:
    """The pin as this worker knows it from the store, and `latest`, the digest of the newest document from VWO.

    `ended` is called when the time of the pin is over. That is measured by the monotonic clock, from the time that
    remained by the clock of the store.
    """

    def __init__(self, ended: Callable[[Pin], Awaitable[None]]) -> None:
        self.pin: Pin | None = None
        self.latest = ""
        self._ended = ended
        self._ends_at: float | None = None  # monotonic
        self._waiting: asyncio.Task[None] | None = None

    @property
    def has_changed_since(self) -> bool:
        """Whether VWO has published another document since the version was pinned."""
        return self.pin is not None and self.latest not in ("", self.pin.latest or self.pin.digest)

    def left_seconds(self) -> float | None:
        """Return the time until the pin ends, None without an end."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    def follow(self, stored: StoredDocument) -> None:
        """Follow the pin of the store, and log its changes."""
        before = self.pin
        if stored.pin != before:
            self.forget()
            if stored.pin is not None:
                self._begin(stored.pin, stored.left_seconds)
            elif before is not None:
                by = f" by {stored.unpinned_by}" if stored.unpinned_by else ""
                extra = once(f"unpinned{by} {before}")
                logger.error("settings were unpinned%s, the latest version %s is used", by, stored.latest, extra=extra)
        self.hold(stored.latest)

    def hold(self, latest: str) -> None:
        """Note the newest document from VWO, which is not used while there is a pin."""
        if latest != self.latest and self.pin is not None and latest != self.pin.digest:
            extra = once(f"not used {latest}")
            logger.error(
                "settings %s from VWO were stored but not used: %s is pinned", latest, self.pin.digest, extra=extra
            )
        self.latest = latest

    def forget(self) -> None:
        """Follow no pin."""
        self.pin = self._ends_at = None
        if self._waiting is not None and self._waiting is not asyncio.current_task():
            self._waiting.cancel()
        self._waiting = None

    def stop(self) -> asyncio.Task[None] | None:
        """Return the task that may still run."""
        return self._waiting

    def record(self) -> dict[str, Any] | None:
        """Return the pin for /status, None without one."""
        if self.pin is None:
            return None
        shown = {name: getattr(self.pin, name) for name in ("at", "by", "reason", "until")}
        about_latest = {"latest": self.latest or None, "changed_since": self.has_changed_since}
        return {"version": self.pin.digest, **shown, "left_seconds": self.left_seconds(), **about_latest}

    def _begin(self, pin: Pin, left_seconds: float | None) -> None:
        self.pin = pin
        logger.error("settings were %s", pin, extra=once(str(pin)))
        if left_seconds is not None and pin.seconds is not None:
            left_seconds = min(max(0.0, left_seconds), pin.seconds)
            self._ends_at = time.monotonic() + left_seconds
            self._waiting = asyncio.create_task(self._wait(pin, left_seconds))

    async def _wait(self, pin: Pin, seconds: float) -> None:
        await asyncio.sleep(seconds)
        logger.error("the time of the pin to %s is over", pin.digest, extra=once(f"end of {pin}"))
        await self._ended(pin)
