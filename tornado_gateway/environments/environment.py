"""Everything of one account and SDK key, as one part of a worker."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tornado_gateway import core, logs
from tornado_gateway.environments.access import Access
from tornado_gateway.environments.evaluation import Evaluator
from tornado_gateway.errors import NotLoadedError
from tornado_gateway.events.flusher import Flusher
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.events.usage import UsageStatistics
from tornado_gateway.experiments.monitor import ExperimentMonitor
from tornado_gateway.http.messages import Request
from tornado_gateway.settings.mirror import Fetch, SettingsMirror, Snapshot
from tornado_gateway.store.interfaces import Identity, StateStore
from tornado_gateway.telemetry.environment_counts import EnvironmentCounts
from tornado_gateway.upstream.client import Dialect, Upstream

FetchDialect = Callable[[Dialect], Awaitable[bytes]]


class Documents(NamedTuple):
    """Where documents for SDKs come from, besides the mirror: `pull` forces a refresh upstream.

    `fetch_dialect` requests another dialect than the mirror's. An environment without upstream has one document for all
    dialects, then it is None.
    """

    pull: Fetch
    fetch_dialect: FetchDialect | None


class _Options(NamedTuple):
    load_device: Callable[[], object]
    settings_seconds: float
    flush_seconds: float


class Environment:
    """The settings, the upstream client, the decisions and the events of one account and SDK key.

    `access` is how requests name it; `use_access` replaces it while requests are served. `state` has its aliases.
    `load_device` loads the device rules; it is called in a thread when the settings need them. `settings_seconds` is
    how long a start waits for settings, `flush_seconds` how long a stop waits for the last flush.
    """

    def __init__(
        self,
        *,
        access: Access,
        upstream: Upstream,
        mirror: SettingsMirror,
        events: EventQueue,
        flusher: Flusher,
        usage: UsageStatistics,
        evaluator: Evaluator,
        state: StateStore,
        documents: Documents,
        load_device: Callable[[], object],
        settings_seconds: float,
        flush_seconds: float,
        experiments: ExperimentMonitor,
        counts: EnvironmentCounts | None = None,
    ) -> None:
        self.use_access(access)
        self.counts = counts or EnvironmentCounts()
        self.upstream = upstream
        self.mirror = mirror
        self.events = events
        self.flusher = flusher
        self.usage = usage
        self.evaluator = evaluator
        self.state = state
        self.documents = documents
        self.experiments = experiments
        self.has_counted = False  # the events that the store held at the start are in the counts
        self._loading_device: asyncio.Future[object] | None = None
        self._options = _Options(load_device, settings_seconds, flush_seconds)

    def use_access(self, access: Access) -> None:
        """Let requests name it like this from now on. `Environments.replace` has to follow."""
        self.access = access

    async def start(self) -> None:
        """Start the queue, the settings, then delivery, because the path of stored events depends on the settings."""
        await self.events.start()
        self.has_counted = True
        await self.mirror.start(self._options.settings_seconds)
        if self._loading_device is not None:
            await self._loading_device  # it holds the interpreter for longer than a visitor should wait
        await self.flusher.start()

    async def stop(self) -> None:
        """Stop polling, commit the events in memory and flush once more. Works after a start that failed, too."""
        await self.mirror.stop()
        await self.events.stop()
        seconds = self._options.flush_seconds
        await asyncio.gather(self.flusher.stop(seconds), self.usage.stop(seconds))
        self.upstream.close()

    async def pause(self) -> None:
        """Stop polling, because requests are no longer served, and deliver the stored events."""
        await self.mirror.stop()
        self.events.flush_soon()

    async def resume(self) -> None:
        """Poll again after a pause."""
        await self.mirror.start(self._options.settings_seconds)

    def settings(self) -> core.Settings:
        """Return the current settings. Raise NotLoadedError before the first ones are loaded."""
        snapshot = self.mirror.current
        if snapshot is None:
            raise NotLoadedError
        return snapshot.settings

    def version(self) -> bytes:
        """Return a name of everything that decisions depend on, other than their contexts; equal in all processes."""
        snapshot = self.mirror.current
        named = "" if snapshot is None else " ".join((snapshot.digest, *self.evaluator.facts_versions))
        return hashlib.blake2b(named.encode(), digest_size=8).hexdigest().encode()

    def decision_settings(self) -> core.Settings:
        """Return the current settings for a decision. Raise DisabledError if this environment makes none."""
        snapshot = self.mirror.current
        if not self.access.decides:
            raise self.access.disabled()
        if snapshot is None:
            raise NotLoadedError
        return snapshot.settings

    def append(self, request: Request, documents: bytes, count: int) -> None:
        """Accept events of a request, whose response waits until they are stored, if EVENT_ACK says so.

        Raise QueueFullError if they cannot be accepted now.
        """
        gate = self.events.append(documents, count)
        if self.events.durable:
            request.gate = gate

    def settings_changed(self, snapshot: Snapshot) -> None:
        """Follow new settings: their key is a secret, and upstream expects their prefix in the paths of events."""
        settings = snapshot.settings
        logs.hide(settings.sdk_key)
        self.upstream.use_collection_prefix(settings.collection_prefix)
        self._use_accepted_key(settings)
        self.experiments.settings_changed(settings)
        if any(feature.needs_device for feature in settings.features.values()):
            self._loading_device = asyncio.get_running_loop().run_in_executor(None, self._options.load_device)

    def keys_changed(self) -> None:
        """Follow new keys in `access`."""
        self._use_accepted_key(None if self.mirror.current is None else self.mirror.current.settings)

    def _use_accepted_key(self, settings: core.Settings | None) -> None:
        """Send requests and events under the key that VWO accepts now: while keys rotate, that of the settings."""
        access = self.access
        if settings is not None and (access.sdk_key is None or settings.sdk_key in access.sdk_keys):
            identity = Identity(settings.account_id, settings.sdk_key)
        elif access.sdk_key is not None:
            identity = Identity(access.account_id or "", access.sdk_key)
        else:
            return
        self.upstream.use_account(identity)
        self.events.use_identity(identity, [Identity(identity.account_id, key) for key in access.sdk_keys])
