"""The data of the endpoints for former settings: changes for the charts, and decisions of a former version."""

import asyncio
from contextlib import suppress
from typing import NamedTuple

from tornado_gateway import core
from tornado_gateway.console.overview import Json
from tornado_gateway.errors import RequestError, StoreError
from tornado_gateway.settings.history import SettingsHistory
from tornado_gateway.settings.mirror import SettingsMirror, Snapshot

READ_SECONDS = 0.5  # that the overview waits for the store


class VersionInUse(NamedTuple):
    """The settings of a decision, and the digest of their document."""

    settings: core.Settings
    digest: str


class FormerSettings:
    """Remembers the changes of each environment, and the last former version that was compiled."""

    def __init__(self) -> None:
        self._changes: dict[str | None, tuple[int, list[Json]]] = {}  # by environment: the stored version, the changes
        self._compiled: tuple[SettingsMirror, VersionInUse] | None = None
        self._compiling = asyncio.Lock()

    async def changes(self, name: str | None, history: SettingsHistory, snapshot: Snapshot | None) -> list[Json]:
        """Return the time and the digest of each version that is kept, the oldest first, for markers in charts.

        They are read when the settings have changed. If the store fails, they are those of before.
        """
        version, known = self._changes.get(name, (-1, []))
        if snapshot is None or snapshot.version == version:
            return known
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(READ_SECONDS):
                versions = await history.versions()
            known = [{"at": one.at, "version": one.digest} for one in reversed(versions)]
            self._changes[name] = snapshot.version, known
        return known

    async def of_version(
        self, name: str, history: SettingsHistory, mirror: SettingsMirror, current: Snapshot
    ) -> VersionInUse:
        """Return a version that is kept, compiled beside the loop. Raise RequestError if it is unknown or unusable."""
        version = (await history.kept()).find(name)
        if version.digest == current.digest:
            return VersionInUse(current.settings, current.digest)
        async with self._compiling:
            if self._compiled is not None and self._compiled[0] is mirror:
                known = self._compiled[1]
                if known.digest == version.digest:
                    return known
            document = await history.document(version)
            try:
                compiled = await mirror.compile(document)
            except core.SettingsError as error:
                raise RequestError(409, f"version {version.digest} cannot be used: {error}") from error
            self._replace(mirror, VersionInUse(compiled.settings, compiled.digest))
            return VersionInUse(compiled.settings, compiled.digest)

    def _replace(self, mirror: SettingsMirror, compiled: VersionInUse) -> None:
        if self._compiled is not None:
            before, known = self._compiled
            before.release(known.settings)
        self._compiled = mirror, compiled
