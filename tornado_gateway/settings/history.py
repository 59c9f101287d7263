"""The versions of an environment's settings for operators: their list, their differences, and the pin.

Used by the console and by commands, which work on the store and not on a worker: every worker follows the store.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from tornado_gateway.core import SettingsError
from tornado_gateway.errors import RequestError
from tornado_gateway.settings.differences import Change, differences
from tornado_gateway.store.interfaces import StateStore, StoredDocument
from tornado_gateway.store.versions import Pin, Version, digest_of

SHORTEST_DIGEST = 4  # characters of a digest that name a version
LONGEST_PIN_SECONDS = 366 * 86_400.0
LONGEST_REASON = 200  # characters
LONGEST_NAME = 100  # characters of the user who pins

Check = Callable[[bytes], Awaitable[object]]  # raises SettingsError for a document that cannot be used


class Kept(NamedTuple):
    """The versions that are kept, the newest first, and the document in use, which is one of them."""

    versions: list[Version]
    stored: StoredDocument
    current: str  # digest

    def find(self, name: str) -> Version:
        """Return a version by its number, the beginning of its digest, or current, latest or previous."""
        found = self._relative(name)
        found = found or [one for one in self.versions if name == str(one.number)]
        if not found and len(name) >= SHORTEST_DIGEST:
            found = [one for one in self.versions if one.digest.startswith(name.lower())]
        if len(found) == 1:
            return found[0]
        if found:
            raise RequestError(400, f"{name} is the beginning of {len(found)} versions: give more of its digest")
        expected = "expected current, latest, previous (if one is older), or a number or digest of the list"
        raise RequestError(404, f"there is no version {name!r:.50}: {expected}")

    def _relative(self, name: str) -> list[Version]:
        current = next((place for place, one in enumerate(self.versions) if one.digest == self.current), None)
        if name == "latest":
            return self.versions[:1]
        if name == "current" and current is not None:
            return [self.versions[current]]
        if name == "previous" and current is not None:
            return self.versions[current + 1 : current + 2]
        return []

    def listing(self) -> dict[str, Any]:
        """Return the versions and the pin as JSON."""
        pin = self.stored.pin
        versions = [
            {
                **asdict(one),
                "is_current": one.digest == self.current,
                "is_latest": one.digest == self.stored.latest,
                "is_pinned": pin is not None and one.digest == pin.digest,
            }
            for one in self.versions
        ]
        pinned = pin and {**asdict(pin), "left_seconds": self.stored.left_seconds}
        return {"current": self.current, "pin": pinned, "versions": versions}


class SettingsHistory:
    """The versions of one document of a store. `check` is called with a document before it is pinned."""

    def __init__(self, state: StateStore, name: str, check: Check) -> None:
        self._state = state
        self._name = name
        self._check = check

    async def kept(self) -> Kept:
        """Raise RequestError if no settings are stored yet."""
        stored = await self._state.load_document(self._name)
        if stored is None:
            raise RequestError(404, "no settings are stored yet: start a gateway with this configuration first")
        return Kept(await self.versions(), stored, await asyncio.to_thread(digest_of, stored.body))

    async def versions(self) -> list[Version]:
        return await self._state.versions(self._name)

    async def document(self, version: Version) -> bytes:
        body = await self._state.load_version(self._name, version.digest)
        if body is None:
            raise RequestError(404, f"version {version.digest} is not kept any more")
        return body

    async def differences(self, before: Version, after: Version) -> list[Change]:
        old, new = await self.document(before), await self.document(after)
        return await asyncio.to_thread(differences, old, new)

    async def pin(self, name: str, by: str, reason: str = "", seconds: float | None = None) -> Pin:
        """Pin a version for all workers. Raise RequestError if it is unknown or cannot be used."""
        kept = await self.kept()
        version = kept.find(name)
        document = await self.document(version)
        try:
            await self._check(document)
        except SettingsError as error:
            raise RequestError(409, f"version {version.digest} cannot be used: {error}") from error
        pin = replace(make_pin(version.digest, by, reason, seconds), latest=kept.stored.latest)
        if await self._state.pin_document(self._name, pin) is None:
            raise RequestError(404, f"version {version.digest} is not kept any more")
        return pin

    async def unpin(self, by: str) -> Pin:
        """Return to the latest version. Return the pin that was removed. Raise RequestError if there is none."""
        check_name(by)
        pin = (await self.kept()).stored.pin
        if pin is None or not await self._state.unpin_document(self._name, by=by):
            raise RequestError(409, "no version of the settings is pinned")
        return pin


def make_pin(digest: str, by: str, reason: str, seconds: float | None) -> Pin:
    """Return a pin that begins now. Raise RequestError for a text or a duration beyond the limits."""
    if len(reason) > LONGEST_REASON or not reason.isprintable():
        raise RequestError(400, f"reason: expected one line of at most {LONGEST_REASON} characters")
    check_name(by)
    if seconds is not None and not 1 <= seconds <= LONGEST_PIN_SECONDS:
        raise RequestError(400, f"duration: expected 1 to {LONGEST_PIN_SECONDS:.0f} seconds")
    now = time.time()
    return Pin(digest, now, by, reason, None if seconds is None else now + seconds, seconds)


def check_name(by: str) -> None:
    """Raise RequestError for a text that cannot be the name of a user."""
    if not by or len(by) > LONGEST_NAME or not by.isprintable():
        raise RequestError(400, f"by: expected a name of at most {LONGEST_NAME} characters")
