"""The settings document in the store, and the lease of the worker that polls for all."""

import asyncio
import logging
import time
import zlib
from typing import NamedTuple

from tornado_gateway.errors import StoreError
from tornado_gateway.logs import once
from tornado_gateway.store.interfaces import Confirmation, StateStore, StoredDocument
from tornado_gateway.store.versions import Pin, digest_of

logger = logging.getLogger(__name__)

LEASE_NAME = "poll"
EARLIER = "earlier version"  # source of a document that was stored before versions were kept


def document_name(account_id: str, sdk_key: str, dialect: str) -> str:
    """Return the name of a document in the store, for an account, environment and dialect. It holds no secret."""
    return f"settings:{account_id}:{zlib.crc32(sdk_key.encode()):08x}:{dialect}"


class Seen(NamedTuple):
    """A confirmation that is new to this worker. `checked` is the monotonic time of the check before."""

    confirmation: Confirmation
    checked: float


class StoredSettings:
    """One document of the store under `name`. `owner` is this worker."""

    def __init__(self, state: StateStore, name: str, owner: str) -> None:
        self.owner = owner
        self._state = state
        self._name = name
        self._known: Confirmation | None = None  # the last one seen in the store
        self._checked = time.monotonic()  # when the store was last checked for a confirmation

    async def load(self) -> StoredDocument | None:
        """Return the document, None also if the store fails."""
        try:
            stored = await self._state.load_document(self._name)
            self._known = await self._state.last_confirmation(self._name)
        except StoreError as error:
            extra = once("stored settings were not read")
            logger.error("Stored settings could not be read: %s", error, extra=extra)
            return None
        return stored

    async def save(self, document: bytes, source: str, *, is_repeated: bool = False) -> StoredDocument | None:
        """Store a document from upstream. Return the stored one, which is another one while a version is pinned.

        Return None if the store failed. Repeated failures are not logged. `source` is the reason of the request.
        """
        try:
            stored = await self._state.load_document(self._name)
            if stored is not None and await _is_latest(document, stored):
                await self.confirm(document, source)
                return stored
            if stored is not None and not stored.latest:  # an earlier version of the gateway stored it
                await self._state.save_document(self._name, stored.body, self.owner, EARLIER, stored.saved_at)
            return await self._state.save_document(self._name, document, self.owner, source)
        except StoreError as error:
            level = logging.DEBUG if is_repeated else logging.ERROR
            extra = None if is_repeated else once("settings were not stored")
            message = "Settings could not be stored, so a restart without VWO would have none: %s"
            logger.log(level, message, error, extra=extra)
            return None

    async def confirm(self, document: bytes, source: str) -> None:
        """Note that upstream still has this document.

        It is kept as a version if it is none: an earlier version of the gateway stored it, or Redis lost its data.
        """
        try:
            digest = await asyncio.to_thread(digest_of, document)
            versions = await self._state.versions(self._name)
            if any(version.digest == digest for version in versions):
                await self._state.confirm_document(self._name, self.owner)
            else:
                await self._state.save_document(self._name, document, self.owner, source)
        except StoreError as error:
            logger.debug("Stored settings could not be confirmed: %s", error)

    async def unpin(self, pin: Pin) -> bool:
        """Remove a pin whose time is over, unless another worker has. Return False if the store failed."""
        try:
            await self._state.unpin_document(self._name, pin)
        except StoreError as error:
            extra = once("pin was not removed")
            logger.error("the pin could not be removed from the store and is ignored: %s", error, extra=extra)
            return False
        return True

    async def new_confirmation(self) -> Seen | None:
        """Return the last confirmation if it has changed since the last call; raise StoreError if that is unknown."""
        known, checked, now = self._known, self._checked, time.monotonic()
        found = self._known = await self._state.last_confirmation(self._name)
        self._checked = now
        return None if found is None or found == known else Seen(found, checked)

    async def wait_for_change(self, version: int) -> StoredDocument:
        """Return the next document of another version; raise StoreError if the store fails."""
        return await self._state.wait_for_document(self._name, version)

    async def acquire_lease(self) -> bool:
        return await self._state.acquire_lease(LEASE_NAME, self.owner)

    async def release_lease(self) -> None:
        try:
            await self._state.release_lease(LEASE_NAME, self.owner)
        except StoreError as error:
            logger.info("Poll lease could not be released, it will expire: %s", error)


async def _is_latest(document: bytes, stored: StoredDocument) -> bool:
    if stored.pin is None:
        return document == stored.body
    return await asyncio.to_thread(digest_of, document) == stored.latest
