"""One environment, made from its configuration and the parts that all environments of a worker share."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tornado_gateway import __version__, core
from tornado_gateway.config.environments import EnvironmentConfig
from tornado_gateway.config.options import Config
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.environment import Documents, Environment
from tornado_gateway.environments.evaluation import Evaluator, StickyDecisions
from tornado_gateway.environments.internal_events import DEBUG, FORWARD, is_discarded
from tornado_gateway.environments.registry import check_account
from tornado_gateway.environments.slow_patterns import SlowPatterns
from tornado_gateway.events.claims import MAX_CLAIMED_BYTES
from tornado_gateway.events.flusher import PARALLEL_REQUESTS, Flusher
from tornado_gateway.events.group_commit import Commits
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.events.requests import EventSink
from tornado_gateway.events.usage import UsageStatistics
from tornado_gateway.experiments.campaigns import MOST_EXPERIMENTS
from tornado_gateway.experiments.monitor import MOST_MERGED, ExperimentMonitor
from tornado_gateway.process.environments.access import build_access
from tornado_gateway.process.environments.stores import Stores, settings_name
from tornado_gateway.settings.documents import read_document
from tornado_gateway.settings.mirror import Fetch, SettingsMirror
from tornado_gateway.store.interfaces import Identity, StateStore, Store
from tornado_gateway.tasks import SharedLimit, pace_of
from tornado_gateway.telemetry.environment_counts import EnvironmentCounts
from tornado_gateway.telemetry.observer import Observer
from tornado_gateway.telemetry.waiting import Watch, stuck_after
from tornado_gateway.upstream.client import Connections, Dialect, DiscardingSink, Upstream
from tornado_gateway.upstream.keys import REJECTED_SECONDS, Keys

COMMIT_SECONDS = 5.0  # a commit that takes longer, besides the time-outs of Redis, is reported as stalled
SMALLEST_SHARE_BYTES = 512 * 1024  # of the memory for claimed events, for one of many environments
EXPERIMENTS_OF_ALL = 512  # of all environments together, whose samples take 32 MB, but each may have a few
FEWEST_EXPERIMENTS = 4
FLUSH_SHARE = 0.5  # maximum share of SHUTDOWN_SECONDS for the last flush


@dataclass(frozen=True, slots=True)
class Shared:
    """The parts of a worker that all of its environments share. `owner` is its name among all workers."""

    owner: str
    stores: Stores
    commits: Commits | None  # of all environments, if their stores share a connection
    location: LocationReader
    device: DeviceReader
    connections: Connections
    observer: Observer
    stuck_after_seconds: float | None = None
    slow_patterns: SlowPatterns = field(default_factory=SlowPatterns)
    delivery: SharedLimit = field(default_factory=lambda: SharedLimit(PARALLEL_REQUESTS))


class Builder:
    """Makes one environment. `number` is that of all environments, which share the memory for events."""

    def __init__(self, shared: Shared, environment: EnvironmentConfig, number: int) -> None:
        self._shared = shared
        self._number = number
        self._pace = pace_of(number)
        self._environment = environment
        self._config = environment.config
        self.store = shared.stores.of(environment.config, number)
        self.experiments = self._build_experiments()
        features = self.experiments.features
        self.counts = EnvironmentCounts(features.decided, features.decisions)

    def build(self) -> Environment:
        config, shared, store = self._config, self._shared, self.store
        upstream = self._build_upstream()
        events = build_queue(config, store, self._pace, shared.commits)
        events.use_identity(Identity(*config.account))
        self.watch = build_watch(config, store, events, shared.stuck_after_seconds, self._pace)
        mirror = self._build_mirror(config, upstream)
        flusher = self._build_flusher(events, upstream)
        lists = ListChecks(_no_member if config.is_offline else upstream.check_attribute)
        environment = Environment(
            access=build_access(self._environment),
            upstream=upstream,
            mirror=mirror,
            events=events,
            flusher=flusher,
            usage=UsageStatistics(choose_sink(config, upstream), shared.observer.usage_finished),
            evaluator=build_evaluator(config, shared, store.state, lists, self.experiments, events),
            state=store.state,
            documents=Documents(
                settings_source(config, upstream, pull=True), None if config.is_offline else upstream.fetch_settings
            ),
            load_device=shared.device.load,
            settings_seconds=config.socket_timeout_seconds,
            flush_seconds=config.shutdown_seconds * FLUSH_SHARE,
            experiments=self.experiments,
            counts=self.counts,
        )
        mirror.subscribe(environment.settings_changed)
        return environment

    def _build_experiments(self) -> ExperimentMonitor:
        return ExperimentMonitor(
            self.store.state,
            most_experiments=max(FEWEST_EXPERIMENTS, min(MOST_EXPERIMENTS, EXPERIMENTS_OF_ALL // self._number)),
            most_merged=max(1, MOST_MERGED // self._number),
            pace=self._pace,
        )

    def _build_upstream(self) -> Upstream:
        config, shared = self._config, self._shared
        upstream = Upstream(
            config.upstream_url,
            config.collect_url,
            *config.account,
            sdk_name=config.sdk_name,
            sdk_version=__version__,
            timeout_seconds=config.socket_timeout_seconds,
            on_response=shared.observer.upstream_responded,
            connections=shared.connections,
        )
        if config.environment_name is not None:
            upstream.keys = Keys(self._environment.sdk_keys, REJECTED_SECONDS)
        return upstream

    def _build_mirror(self, config: Config, upstream: Upstream) -> SettingsMirror:
        return SettingsMirror(
            self.store.state,
            settings_source(config, upstream),
            name=settings_name(config),
            owner=self._shared.owner,
            source="file" if config.is_offline else "upstream",
            poll_seconds=config.poll_seconds,
            sdk=core.Sdk(config.sdk_name, __version__),
            bootstrap=None if config.is_offline else config.settings_file,
            on_poll=self._both(self._shared.observer.polled, self.counts.polled),
            check=partial(check_account, config.account_id),
            phase=phase_of(config),
            account_options=config.account_options,
        )

    def _build_flusher(self, events: EventQueue, upstream: Upstream) -> Flusher:
        config = self._config
        sink = choose_sink(config, upstream)
        return Flusher(
            self.store.events,
            events,
            sink,
            events_per_request=config.events_per_request,
            interval_seconds=config.flush_seconds,
            on_request=self._flushed,
            discards=isinstance(sink, DiscardingSink),
            share=self._shared.delivery.share(),
            claimed_bytes=max(SMALLEST_SHARE_BYTES, MAX_CLAIMED_BYTES // self._number),
            phase=phase_of(config),
        )

    def _flushed(self, outcome: str, seconds: float) -> None:
        self._shared.observer.flushed(outcome, seconds)
        self.counts.flushed(outcome)

    def _both(self, first: Callable[[str], None], second: Callable[[str], None]) -> Callable[[str], None]:
        def call(outcome: str) -> None:
            first(outcome)
            second(outcome)

        return call


def phase_of(config: Config) -> float:
    """Return a number from 0 to 1 that spreads the polls and flushes of many environments over the interval."""
    return 0.0 if config.environment_name is None else zlib.crc32(config.environment_name.encode()) / 2**32


def build_queue(config: Config, store: Store, pace: int, commits: Commits | None) -> EventQueue:
    return EventQueue(
        store.events,
        limit=config.event_queue_limit,
        limit_bytes=config.event_queue_bytes,
        chunk_events=config.events_per_request,
        dead_letter_limit=config.dead_letter_limit,
        dead_letter_seconds=config.dead_letter_days * 86_400.0,
        durable=config.event_ack == "durable",
        shared=config.uses_redis,
        decisions_need_store=config.event_queue_full == "refuse",
        commit_seconds=COMMIT_SECONDS + (2 * config.socket_timeout_seconds if config.uses_redis else 0),
        pace=pace,
        commits=commits,
    )


def build_evaluator(
    config: Config,
    shared: Shared,
    state: StateStore,
    lists: ListChecks | None,
    experiments: ExperimentMonitor,
    events: EventQueue,
) -> Evaluator:
    def discards_debug(document: bytes) -> bool:
        if not is_discarded(config.internal_events, DEBUG, document):
            return False
        events.discard_internal(1)
        return True

    return Evaluator(
        shared.location,
        shared.device,
        lists,
        aliases=state if config.aliasing_enabled else None,
        sticky=StickyDecisions(state, config.sticky_seconds) if config.sticky_decisions else None,
        slow_patterns=shared.slow_patterns,
        on_shown=experiments.exposures.shown,
        discards_debug=None if config.internal_events == FORWARD else discards_debug,
    )


def build_watch(
    config: Config, store: Store, events: EventQueue, stuck_after_seconds: float | None, pace: int
) -> Watch:
    return Watch(
        store.events,
        lambda: events.counts.waiting,
        stuck_after_seconds or stuck_after(config.flush_seconds, config.socket_timeout_seconds),
        is_shared=config.uses_redis,
        pace=pace,
    )


def choose_sink(config: Config, upstream: Upstream) -> EventSink:
    """Return upstream. Without an account, events are only sent if UPSTREAM_URL or COLLECT_URL is set."""
    has_collector = any(config.source(name) != "default" for name in ("UPSTREAM_URL", "COLLECT_URL"))
    return upstream if has_collector or not config.is_offline else DiscardingSink()


def settings_source(config: Config, upstream: Upstream, *, pull: bool = False) -> Fetch:
    """Return the function that gets the settings: SETTINGS_FILE if there is no key, else upstream."""
    file = config.settings_file
    if config.is_offline and file is not None:
        return lambda: _read_file(file)
    return lambda: upstream.fetch_settings(Dialect(), pull=pull)


async def _no_member(list_id: str, value: str) -> bool:
    """Return False: without upstream, no list is known."""
    return False


async def _read_file(path: Path) -> bytes:
    return read_document(path)
