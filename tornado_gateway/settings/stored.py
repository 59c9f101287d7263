"""The settings document in the store, and the lease of the worker that polls for all."""

import logging
import time
import zlib
from typing import NamedTuple

from tornado_gateway.errors import StoreError
from tornado_gateway.store.interfaces import Confirmation, StateStore, StoredDocument

logger = logging.getLogger(__name__)

LEASE_NAME = "poll"


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
            logger.error("Stored settings could not be read: %s", error)
            return None
        return stored

    async def save(self, document: bytes, is_repeated: bool) -> int:
        """Store the document. Return its version, or 0 if it could not be stored. Repeated failures are not logged."""
        try:
            stored = await self._state.load_document(self._name)
            if stored is None or stored.body != document:
                stored = await self._state.save_document(self._name, document, self.owner)
            else:
                await self.confirm()
            return stored.version
        except StoreError as error:
            level = logging.DEBUG if is_repeated else logging.ERROR
            logger.log(level, "Settings could not be stored, so a restart without VWO would have none: %s", error)
            return 0

    async def confirm(self) -> None:
        try:
            await self._state.confirm_document(self._name, self.owner)
        except StoreError as error:
            logger.debug("Stored settings could not be confirmed: %s", error)

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
