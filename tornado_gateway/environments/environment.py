"""Everything of one account and SDK key, as one part of a worker."""

import asyncio
from collections.abc import Callable

from tornado_gateway import core, logs
from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.environments.evaluation import Evaluator
from tornado_gateway.errors import NotLoadedError
from tornado_gateway.events.flusher import Flusher
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.events.usage import UsageStatistics
from tornado_gateway.settings.mirror import SettingsMirror, Snapshot
from tornado_gateway.store.interfaces import Identity
from tornado_gateway.telemetry.waiting import Watch
from tornado_gateway.upstream.client import Upstream


class Environment:
    """The settings, the upstream client, the decisions and the events of one account and SDK key.

    `sdk_key` is the configured key. If it is None, the settings come from a file and name the account and the key.
    `load_device` loads the device rules; it is called in a thread when the settings need them. `settings_seconds` is
    how long a start waits for settings, `flush_seconds` how long a stop waits for the last flush.
    """

    def __init__(
        self,
        *,
        sdk_key: str | None,
        upstream: Upstream,
        mirror: SettingsMirror,
        events: EventQueue,
        flusher: Flusher,
        usage: UsageStatistics,
        lists: ListChecks,
        evaluator: Evaluator,
        waiting: Watch,
        load_device: Callable[[], object],
        settings_seconds: float,
        flush_seconds: float,
    ) -> None:
        self.sdk_key = sdk_key
        self.raw_key = (sdk_key or "").encode()  # as queries contain it
        self.upstream = upstream
        self.mirror = mirror
        self.events = events
        self.flusher = flusher
        self.usage = usage
        self.lists = lists
        self.evaluator = evaluator
        self.waiting = waiting
        self.has_counted = False  # the events that the store held at the start are in the counts
        self._load_device = load_device
        self._loading_device: asyncio.Future[object] | None = None
        self._settings_seconds = settings_seconds
        self._flush_seconds = flush_seconds

    async def start(self) -> None:
        """Start the queue, the settings, then delivery, because the path of stored events depends on the settings."""
        await self.events.start()
        self.has_counted = True
        await self.mirror.start(self._settings_seconds)
        if self._loading_device is not None:
            await self._loading_device  # it holds the interpreter for longer than a visitor should wait
        await self.flusher.start()
        self.waiting.start()

    async def stop(self) -> None:
        """Stop polling, commit the events in memory and flush once more. Works after a start that failed, too."""
        await self.mirror.stop()
        await self.waiting.stop()
        await self.events.stop()
        await asyncio.gather(self.flusher.stop(self._flush_seconds), self.usage.stop(self._flush_seconds))
        self.upstream.close()

    def settings(self) -> core.Settings:
        """Return the current settings. Raise NotLoadedError before the first ones are loaded."""
        snapshot = self.mirror.current
        if snapshot is None:
            raise NotLoadedError
        return snapshot.settings

    def settings_changed(self, snapshot: Snapshot) -> None:
        """Follow new settings: their key is a secret, and upstream expects their prefix in the paths of events."""
        settings = snapshot.settings
        logs.hide(settings.sdk_key)
        self.upstream.use_collection_prefix(settings.collection_prefix)
        if self.sdk_key is None:
            identity = Identity(settings.account_id, settings.sdk_key)
            self.upstream.use_account(identity)
            self.events.use_identity(identity)
        if any(feature.needs_device for feature in settings.features.values()):
            self._loading_device = asyncio.get_running_loop().run_in_executor(None, self._load_device)
