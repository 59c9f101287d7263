"""The data of the endpoints for former settings: changes for the charts, and decisions of a former version."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from typing import NamedTuple

from tornado_gateway import core
from tornado_gateway.console.overview import Json
from tornado_gateway.errors import RequestError, StoreError
from tornado_gateway.settings.differences import Change
from tornado_gateway.settings.history import SettingsHistory
from tornado_gateway.settings.mirror import SettingsMirror, Snapshot

MOST_LABELS = 5  # versions whose differences are labels
LONGEST_LABEL = 80  # characters


class VersionInUse(NamedTuple):
    """The settings of a decision, and the digest of their document."""

    settings: core.Settings
    digest: str


class FormerSettings:
    """Remembers the markers of each environment, and the last former version that was compiled."""

    def __init__(self) -> None:
        self._markers: dict[str | None, tuple[int, list[Json]]] = {}  # by environment: the stored version, the markers
        self._reading: dict[str | None, asyncio.Task[None]] = {}
        self._compiled: tuple[SettingsMirror, VersionInUse] | None = None
        self._compiling = asyncio.Lock()

    def stop(self) -> None:
        for task in self._reading.values():
            task.cancel()

    def markers(self, name: str | None, history: SettingsHistory, snapshot: Snapshot | None) -> list[Json]:
        """Return the times of the versions that are kept, the oldest first, for charts.

        They are read in the background when the settings have changed, and the result is in later calls.
        """
        version, known = self._markers.get(name, (-1, []))
        if snapshot is not None and snapshot.version != version and name not in self._reading:
            reading = asyncio.create_task(self._read(name, history, snapshot.version))
            self._reading[name] = reading
            reading.add_done_callback(lambda _: self._reading.pop(name, None))
        return known

    async def _read(self, name: str | None, history: SettingsHistory, version: int) -> None:
        labels = {one["at"]: one["label"] for one in self._markers.get(name, (-1, []))[1]}
        with suppress(StoreError, RequestError):
            self._markers[name] = version, await _markers(history, labels)

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


async def _markers(history: SettingsHistory, known: Mapping[float, str]) -> list[Json]:
    """Return the markers. The labels of the newest ones are their differences; `known` are labels by time."""
    versions = await history.versions()
    labels = dict(known)
    for version, before in islice(pairwise(versions), MOST_LABELS):
        if version.at not in labels:
            labels[version.at] = _label(await history.differences(before, version))
    return [
        {"at": one.at, "version": one.digest, "label": labels.get(one.at, f"settings {one.digest[:8]}")}
        for one in reversed(versions)
    ]


def _label(changes: Sequence[Change]) -> str:
    text = "; ".join(map(str, changes)) or "no differences"
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"
