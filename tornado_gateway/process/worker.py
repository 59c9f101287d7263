"""One worker process: builds the collaborators, starts and stops them in order."""

import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import signal
import socket
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tornado_gateway import __version__, core, logs
from tornado_gateway.api.events import Collector
from tornado_gateway.api.flags import Decisions
from tornado_gateway.api.router import Api
from tornado_gateway.api.settings import SettingsApi
from tornado_gateway.api.visitors import Lookups
from tornado_gateway.config import Config
from tornado_gateway.console.admin_pages import Admin
from tornado_gateway.console.auth import Access
from tornado_gateway.console.explain import Explainer
from tornado_gateway.console.overview import RequestCounts, request_latencies
from tornado_gateway.console.pages import build_application
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.lists import Ask, ListChecks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.enrichment.location_download import (
    CONNECT_SECONDS,
    DOWNLOAD_SECONDS,
    LARGEST_ARCHIVE_BYTES,
    GeoRefresh,
    download,
)
from tornado_gateway.errors import GatewayError, StoreError
from tornado_gateway.events.flusher import EventSink, Flusher
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.http.certificates import Certificates
from tornado_gateway.http.client_address import ClientAddress
from tornado_gateway.http.cors import Cors
from tornado_gateway.http.limits import Limits, ServerOptions
from tornado_gateway.http.request_ids import Tracing
from tornado_gateway.http.server import Server
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.process.status import instance_status
from tornado_gateway.process.supervisor import Post
from tornado_gateway.settings.mirror import Fetch, SettingsMirror, Snapshot
from tornado_gateway.settings.stored import document_name
from tornado_gateway.store.interfaces import SHARED, Identity, Store
from tornado_gateway.store.sqlite.events import SqliteEvents, open_sqlite
from tornado_gateway.tasks import Periodic
from tornado_gateway.telemetry import waiting
from tornado_gateway.telemetry.counters import SharedCounters
from tornado_gateway.telemetry.observer import Observer
from tornado_gateway.telemetry.prometheus import About, Exposition
from tornado_gateway.telemetry.scoreboard import WorkerRecord
from tornado_gateway.upstream.client import Dialect, DiscardingSink, Upstream
from tornado_gateway.upstream.curl import CurlPool
from tornado_gateway.version import BUILD

logger = logging.getLogger(__name__)

BATCH_PATH = b"/batch-events-v2"
COMMIT_SECONDS = 5.0  # a commit that takes longer, besides the time-outs of Redis, is reported as stalled
FLUSH_SHARE = 0.5  # of SHUTDOWN_SECONDS that the last flush may take
PUBLISH_SECONDS = 0.25  # how old the other workers' numbers in /status may be
ADOPT_SECONDS = 10.0  # how often a worker looks for the event log of a dead one
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Worker:
    """Everything of one process. `start` and `stop` mirror each other."""

    def __init__(
        self,
        config: Config,
        post: Post,
        memory: SharedCounters | None = None,
        stuck_after_seconds: float | None = None,
    ) -> None:
        self._config = config
        self._post = post
        memory = memory or SharedCounters(post.scoreboard.rows)
        self.observer = Observer(memory, post.place, post.generation)
        self._adopted = 0  # how many processes had ended when their logs were last taken over
        self._adopting: asyncio.Task[None] | None = None
        self._loading_device: asyncio.Future[object] | None = None
        self._stop_adopting = asyncio.Event()
        self._publishing = Periodic(self._publish, PUBLISH_SECONDS, jitter=0.1)
        self._started_at = time.monotonic()
        self._stopping = False
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        sdk = core.Sdk(config.sdk_name, __version__)
        self.upstream = Upstream(
            config.upstream_url,
            config.collect_url,
            *config.account,
            sdk_name=config.sdk_name,
            sdk_version=__version__,
            timeout_seconds=config.socket_timeout_seconds,
            on_response=self.observer.upstream_responded,
        )
        self.store = build_store(config, self._owner)
        self.mirror = SettingsMirror(
            self.store.state,
            self._fetch_settings(),
            name=document_name(config.account.id or "file", config.account.sdk_key, "server-1"),
            owner=self._owner,
            source="file" if config.is_offline else "upstream",
            poll_seconds=config.poll_seconds,
            sdk=sdk,
            bootstrap=None if config.is_offline else config.settings_file,
            on_poll=self.observer.polled,
        )
        self.events = EventQueue(
            self.store.events,
            limit=config.event_queue_limit,
            chunk_events=config.events_per_request,
            dead_letter_limit=config.dead_letter_limit,
            durable=config.event_ack == "durable",
            shared=config.uses_redis,
            decisions_need_store=config.event_queue_full == "refuse",
            commit_seconds=COMMIT_SECONDS + (2 * config.socket_timeout_seconds if config.uses_redis else 0),
        )
        self.events.use_identity(Identity(*config.account))
        self.flusher = Flusher(
            self.store.events,
            self.events,
            self._build_sink(),
            events_per_request=config.events_per_request,
            interval_seconds=config.flush_seconds,
            on_request=self.observer.flushed,
        )
        self.waiting = waiting.Watch(
            self.store.events,
            lambda: self.events.counts.waiting,
            stuck_after_seconds or waiting.stuck_after(config.flush_seconds, config.socket_timeout_seconds),
            is_shared=config.uses_redis,
        )
        self.location = LocationReader(config.location_database, config.geo_map_file, copy_directory=config.data_dir)
        self.geo_refresh = self._build_geo_refresh()
        self.device = DeviceReader(map_file=config.ua_map_file)
        self.certificates = (
            Certificates(config.tls_cert_path, config.tls_key_path)
            if config.tls_cert_path and config.tls_key_path
            else None
        )
        self._lists = ListChecks(self._ask_list())
        self.requests = RequestCounts()
        self.admin = self._build_admin(memory)
        api = self._build_api()
        about = About(__version__, config.event_queue_limit)
        exposition = Exposition(memory, post.scoreboard, about, self._publish)
        tracing = Tracing(Cors(config.cors_allowed_origins).header_lines if config.cors_config_required else None)
        options = ServerOptions(
            self.observer.sampled(api.find),
            build_application(
                self.mirror,
                self.status,
                lambda: self._stopping,
                self.admin,
                # `serve` has chosen the token before it started this worker. Without one, no request is authorized.
                Access(config.admin_token or secrets.token_urlsafe(), config.trusted_proxies),
                exposition.render,
            ),
            limits=Limits(max_body_bytes=config.max_body_bytes, keep_alive_seconds=config.keep_alive_seconds),
            body_limit=lambda path: config.max_batch_bytes if path.endswith(BATCH_PATH) else config.max_body_bytes,
            on_answer=tracing.noting(self.observer.responded),
            extra_header_lines=tracing.header_lines,
            echo_headers=tracing.echo_headers,
            lenient=api.is_sdk_path,
        )
        self.server = Server(options, self.certificates.context if self.certificates else None)

    def _build_api(self) -> Api:
        config, mirror, events = self._config, self.mirror, self.events
        state = self.store.state
        client_address = ClientAddress(config.trusted_proxies)
        decisions = Decisions(
            mirror,
            events,
            self.location,
            self.device,
            self._lists,
            state,
            resolves_aliases=config.aliasing_enabled,
            sticky_seconds=config.sticky_seconds if config.sticky_decisions else None,
        )
        collector = Collector(
            mirror,
            events,
            client_address,
            sdk_key=config.sdk_key,
            slice_events=config.max_events_per_request,
        )
        lookups = Lookups(
            self.location,
            self.device,
            self._lists,
            state,
            self.upstream,
            client_address,
            ip_fallback=config.client_ip_fallback,
            serves_browsers=config.cors_config_required,
        )
        publisher = SettingsApi(
            mirror,
            self._fetch_settings(pull=True),
            None if config.is_offline else self.upstream.fetch_settings,
            poll_seconds=config.poll_seconds,
            wait_seconds=config.socket_timeout_seconds,
            webhook_token=config.webhook_token,
        )
        api = Api(
            decisions,
            collector,
            lookups,
            publisher,
            decides=config.decision_required,
            serves_browsers=config.cors_config_required,
        )
        decisions.on_decision = self.observer.decided
        mirror.subscribe(self._settings_changed, api.settings_changed)
        mirror.subscribe(decisions.settings_changed, publisher.settings_changed)
        return api

    def _build_admin(self, memory: SharedCounters) -> Admin:
        config = self._config
        explainer = Explainer(
            self.location,
            self.device,
            self._lists,
            self.store.state,
            resolves_aliases=config.aliasing_enabled,
            is_sticky=config.sticky_decisions,
        )
        latencies = partial(request_latencies, memory)
        return Admin(self.mirror, self.events, self.store.events, explainer, self.status, latencies)

    def _settings_changed(self, snapshot: Snapshot) -> None:
        settings = snapshot.settings
        logs.hide(settings.sdk_key)
        self.upstream.use_collection_prefix(settings.collection_prefix)
        if self._config.is_offline:
            self.upstream.use_account(Identity(settings.account_id, settings.sdk_key))
            self.events.use_identity(Identity(settings.account_id, settings.sdk_key))
        if any(feature.needs_device for feature in settings.features.values()):
            self._loading_device = asyncio.get_running_loop().run_in_executor(None, self.device.load)

    def _build_sink(self) -> EventSink:
        """Without an account events are sent only where somebody has explicitly said to send them."""
        has_collector = any(self._config.source(name) != "default" for name in ("UPSTREAM_URL", "COLLECT_URL"))
        return self.upstream if has_collector or not self._config.is_offline else DiscardingSink()

    async def start(self) -> None:
        ended = self._post.scoreboard.retirements
        await self.store.open()
        await self.events.start()
        self._adopted = ended  # the store has opened the log of a dead worker, or has taken it over
        self._publish()
        self._publishing.start()
        await asyncio.to_thread(self.location.open)  # half a second for a full-size database
        self.location.start()
        if self.geo_refresh is not None:
            self.geo_refresh.start()
        await self.mirror.start(self._config.socket_timeout_seconds)
        if self._loading_device is not None:
            await self._loading_device  # it holds the interpreter for longer than a visitor should wait
        if self.certificates is not None:
            self.certificates.start()
        await self.server.listen(sock=self._post.sock)
        await self.flusher.start()
        self.waiting.start()
        self.observer.start()
        self.admin.start()
        if isinstance(self.store.events, SqliteEvents):
            self._adopting = asyncio.create_task(self._adopt_regularly(self.store.events))
        self._publish()
        scheme = "https" if self.certificates else "http"
        logger.info("serving on %s://%s:%d, version %s", scheme, self._config.host, self.server.port, BUILD)

    async def stop(self) -> None:
        """Take no new work, finish what was accepted, flush once more; what is left stays stored."""
        self._stopping = True  # /ready says 503 from now on
        self._stop_adopting.set()
        self.admin.stop()
        deadline = self._config.shutdown_seconds
        await self.server.stop(deadline * (1 - FLUSH_SHARE))
        if self.certificates is not None:
            self.certificates.stop()
        await self.mirror.stop()
        if self.geo_refresh is not None:
            await self.geo_refresh.stop()
        self.location.stop()
        if self._adopting is not None:
            await self._adopting  # never cut off: its lock on the other log would go before the move is done
        self.observer.stop()
        await self.waiting.stop()
        await self.events.stop()
        await self.flusher.stop(deadline * FLUSH_SHARE)
        await self.store.close()
        self.upstream.close()
        self._publishing.stop()
        self._publish()

    def status(self) -> dict[str, Any]:
        """The body of /status: the whole instance, whichever worker is asked."""
        self._publish()
        return instance_status(self._post.scoreboard, __version__)

    def _publish(self) -> None:
        self._post.scoreboard.beat(self._post.place)
        counts = self.observer
        self.requests.total, self.requests.decisions = counts.totals()
        counts.count_lookups("location", self.location.hits, self.location.misses)
        counts.count_lookups("device", self.device.hits, self.device.misses)
        failure = self.store.events.failure
        counts.publish(
            {
                "geo_built_at": self.location.build_epoch,
                "degraded": float(bool(self.events.failure or failure)),
                "redis_up": float(not failure) if self._config.uses_redis else None,
            }
        )
        self._post.scoreboard.publish(self._post.place, self._record())

    def _record(self) -> WorkerRecord:
        """What the other workers may know of this one."""
        not_sent = self.events.failure or self.store.events.failure or self.flusher.last.error
        snapshot, poll, flush, counts = (
            self.mirror.current,
            self.mirror.last_poll,
            self.flusher.last,
            self.events.counts,
        )
        return {
            "pid": os.getpid(),
            "slot": self._post.slot,
            "row": self._post.place,
            "generation": self._post.generation,
            "adopted": self._adopted,
            "is_queue_shared": self._config.uses_redis,
            "uptime_seconds": round(time.monotonic() - self._started_at, 3),
            "state": "stopping" if self._stopping else "serving" if self.server.port else "starting",
            "connections": self.server.connections,
            "in_flight": self.server.in_flight,
            "requests": self.requests.as_record(),
            "settings": {
                "version": snapshot.settings.version if snapshot else None,
                "stored_version": snapshot.version if snapshot else None,
                "age_seconds": self.mirror.age_seconds(),
                "hash": snapshot.digest if snapshot else None,
                "source": snapshot.source if snapshot else None,
            },
            "events": {
                "received": counts.received,
                "waiting": counts.waiting,
                "delivered": counts.delivered,
                "dead": counts.dead,
                "rejected": counts.rejected,
                "discarded": counts.discarded,
            },
            "reading": asdict(self.waiting.reading(not_sent or self.flusher.retry_reason)),
            "last_poll": {
                "at": poll.at,
                "age_seconds": poll.age_seconds(),
                "instance": poll.instance,
                "error": poll.error,
            },
            "last_flush": {"at": flush.at, "events": flush.events, "error": flush.error},
            "last_error": not_sent or poll.error,
        }

    async def _adopt_regularly(self, log: SqliteEvents) -> None:
        """Take over the events of workers that have ended without being replaced, or with events left."""
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_adopting.wait(), ADOPT_SECONDS * random.uniform(0.5, 1.0))
                return
            ended = self._post.scoreboard.retirements
            try:
                try:
                    if moved := await log.adopt():
                        logger.info("%d events of a worker that has ended are taken over", moved)
                finally:  # a part may have been taken over
                    await self.events.recount_after_adoption()
            except (StoreError, OSError) as error:
                logger.error("the events of an ended worker cannot be taken over yet: %s", error)
            else:
                self._adopted = ended

    def _fetch_settings(self, *, pull: bool = False) -> Fetch:
        file = self._config.settings_file
        if self._config.is_offline and file is not None:
            return lambda: _read_file(file)
        return lambda: self.upstream.fetch_settings(Dialect(), pull=pull)

    def _build_geo_refresh(self) -> GeoRefresh | None:
        config = self._config
        if config.maxmind_license_key is None or config.maxmind_user_id is None or config.maxmind_db_path is not None:
            return None
        client = CurlPool(
            connect_seconds=CONNECT_SECONDS,
            timeout_seconds=DOWNLOAD_SECONDS,
            max_response_bytes=LARGEST_ARCHIVE_BYTES,
        )
        fetch = partial(
            download,
            client,
            user_id=str(config.maxmind_user_id),
            license_key=config.maxmind_license_key,
            directory=config.data_dir,
        )
        return GeoRefresh(fetch, config.downloaded_location_database, self._holds_geo_lease, self.location.check)

    async def _holds_geo_lease(self) -> bool:
        """One downloader for each directory, whatever else its workers share."""
        name = f"{SHARED}geoip:{socket.gethostname()}:{self._config.data_dir.resolve()}"
        try:
            return await self.store.state.acquire_lease(name, self._owner)
        except StoreError:
            return False

    def _ask_list(self) -> Ask:
        return _no_member if self._config.is_offline else self.upstream.check_attribute


async def _no_member(list_id: str, value: str) -> bool:
    """Without upstream nobody knows the lists."""
    return False


def build_store(config: Config, owner: str) -> Store:
    """The embedded store; with Redis, that one, and the embedded event log for the time when Redis fails."""
    if not config.uses_redis:
        return open_sqlite(config.data_dir, config.store_sync, config.namespace)
    from tornado_gateway.store.redis.events import open_redis  # what a gateway without Redis need not load
    from tornado_gateway.store.redis.takeover import take_over
    from tornado_gateway.store.spill import SpillingEvents

    options = redis_options(config)
    redis = open_redis(options, config.namespace, owner)
    local = SqliteEvents(config.data_dir, config.store_sync)
    patience_seconds = 2 * config.socket_timeout_seconds  # Redis itself has given up by then
    events = SpillingEvents(redis.events, local, patience_seconds=patience_seconds)
    return Store(events, redis.state, take_over(options, config.former_namespace, config.namespace, owner))


async def _read_file(path: Path) -> bytes:
    return path.read_bytes()


def run(config: Config, post: Post, memory: SharedCounters | None = None) -> int:
    """Run one worker until SIGTERM or SIGINT. Returns the exit code."""
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        try:
            return runner.run(_serve(config, post, memory))
        except (GatewayError, OSError) as error:
            logger.error("the gateway cannot start: %s", error)
            return 1


async def _serve(config: Config, post: Post, memory: SharedCounters | None) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    worker = Worker(config, post, memory)
    await worker.start()
    _tune_collector()
    post.report_ready()
    await stop.wait()
    # The end of the loop takes its handlers away; a repeated signal would then kill the process in its last moment.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    await worker.stop()
    return 0


def _tune_collector() -> None:
    """What a request leaves behind has no cycles, so the collector need not look often, and never at what stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it is installed."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()
