"""Assembly: all parts of one worker, made from the configuration. The only module that knows most of the others."""

import asyncio
import os
import secrets
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tornado.httputil import HTTPServerConnectionDelegate

from tornado_gateway import __version__, core
from tornado_gateway.api.aliases import AliasesApi
from tornado_gateway.api.cors import Cors, OriginCheck
from tornado_gateway.api.events import EventsApi
from tornado_gateway.api.flags import FlagsApi
from tornado_gateway.api.lists import ListsApi
from tornado_gateway.api.router import Endpoints, Router
from tornado_gateway.api.routes import DECISIONS
from tornado_gateway.api.settings import SettingsApi
from tornado_gateway.api.visitors import VisitorsApi
from tornado_gateway.config import Config
from tornado_gateway.console.admin_pages import AdminApi
from tornado_gateway.console.auth import Auth, EndedSessions
from tornado_gateway.console.explain import Explainer
from tornado_gateway.console.overview import request_latencies
from tornado_gateway.console.pages import build_application
from tornado_gateway.console.recent_events import RecentEvents
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.lists import ListChecks
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.evaluation import Evaluator, StickyDecisions
from tornado_gateway.environments.registry import Environments, check_account
from tornado_gateway.environments.slow_patterns import SlowPatterns
from tornado_gateway.events.flusher import Flusher
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.events.requests import EventSink
from tornado_gateway.events.usage import UsageStatistics
from tornado_gateway.http.certificates import Certificates
from tornado_gateway.http.fields import ClientAddress
from tornado_gateway.http.limits import Limits, ServerOptions
from tornado_gateway.http.request_ids import Tracing
from tornado_gateway.http.server import Server
from tornado_gateway.process.adoption import Adoption
from tornado_gateway.process.certificate_expiry import ExpiryReport
from tornado_gateway.process.counters import new_counters
from tornado_gateway.process.location_parts import location_parts
from tornado_gateway.process.open_files import max_connections, open_files_limit
from tornado_gateway.process.parent.sockets import PORT_REMEDY
from tornado_gateway.process.parent.worker_process import WorkerSlot
from tornado_gateway.process.parts import Part, explaining
from tornado_gateway.process.publication import Publication
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.process.status import Problems, instance_status
from tornado_gateway.settings.documents import read_document
from tornado_gateway.settings.mirror import Fetch, SettingsMirror
from tornado_gateway.settings.stored import document_name
from tornado_gateway.store.interfaces import Identity, Store
from tornado_gateway.store.sqlite.events import SqliteEvents, open_sqlite
from tornado_gateway.telemetry.attempts import TokenCheck
from tornado_gateway.telemetry.counters import SharedCounters
from tornado_gateway.telemetry.observer import Observer
from tornado_gateway.telemetry.prometheus import About, Exposition
from tornado_gateway.telemetry.waiting import Watch, stuck_after
from tornado_gateway.upstream.client import Dialect, DiscardingSink, Upstream

COMMIT_SECONDS = 5.0  # a commit that takes longer, besides the time-outs of Redis, is reported as stalled
FLUSH_SHARE = 0.5  # maximum share of SHUTDOWN_SECONDS for the last flush

STORE_REMEDY = (
    "Make DATA_DIR a directory that the gateway's user may write to. If a file in it is damaged, move it elsewhere: the"
    " next start creates a new one."
)
TLS_REMEDY = "Correct the files of TLS_CERT_PATH and TLS_KEY_PATH, or unset both to serve without TLS."
GEO_MAP_REMEDY = "Correct the file, or unset GEO_MAP_FILE."
UA_MAP_REMEDY = "Correct the file, or unset UA_MAP_FILE."


class Assembly:
    """Makes the parts of a worker and connects them. Nothing is started here.

    The parts that all environments share are made first: store, location, device. `stopping` is set when the worker
    begins to stop. `stuck_after_seconds` replaces the time after which waiting events count as stuck.
    """

    def __init__(
        self,
        config: Config,
        slot: WorkerSlot,
        memory: SharedCounters | None = None,
        stuck_after_seconds: float | None = None,
    ) -> None:
        self._config = config
        self._slot = slot
        self._memory = memory or new_counters(slot.scoreboard.rows)
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self.stopping = asyncio.Event()
        self._observer = Observer(self._memory, slot.row, slot.generation)
        self._store = build_store(config, self._owner)
        with explaining(GEO_MAP_REMEDY):
            self._location = LocationReader(
                config.location_database, config.geo_map_file, copy_directory=config.data_dir
            )
        with explaining(UA_MAP_REMEDY):
            self._device = DeviceReader(map_file=config.ua_map_file)
        with explaining(TLS_REMEDY):
            self._certificates = build_certificates(config)
        self.environments = Environments(
            self._build_environment(stuck_after_seconds), needs_key=config.client_key_required
        )
        self._admin = self._build_admin()
        self.server = self._build_server()
        self._adoption = self._build_adoption()
        self.publication = self._build_publication()

    def parts(self) -> list[Part]:
        """Return the parts in the order of their start. They stop in the reverse order: requests first."""
        environment, server, deadline = self.environments.default, self.server, self._config.shutdown_seconds
        return [
            Part("publication", self.publication.start, self.publication.stop),
            Part("store", self._store.open, self._store.close, STORE_REMEDY),
            *location_parts(self._config, self._store, self._location, self._owner),
            Part("problems", self.publication.problems.start, self.publication.problems.stop),
            Part("environment", environment.start, environment.stop, STORE_REMEDY),
            Part("adoption", self._adoption.start, self._adoption.stop),
            *self._certificate_parts(),
            Part(
                "server",
                lambda: server.listen(sock=self._slot.sock),
                lambda: server.stop(deadline * (1 - FLUSH_SHARE)),
                PORT_REMEDY,
            ),
            Part("lag measurement", self._observer.start, self._observer.stop),
            Part("history", self._admin.start, self._admin.stop),
        ]

    def _certificate_parts(self) -> list[Part]:
        certificates = self._certificates
        return [] if certificates is None else [Part("certificates", certificates.start, certificates.stop)]

    def status(self) -> dict[str, Any]:
        """Return the body of /status, which is that of the whole instance for any worker."""
        self.publication.publish()
        return instance_status(self._slot.scoreboard, __version__)

    # --- Environment ---

    def _build_environment(self, stuck_after_seconds: float | None) -> Environment:
        config, store = self._config, self._store
        upstream = build_upstream(config, self._observer.upstream_responded)
        events = build_queue(config, store)
        mirror = self._build_mirror(upstream)
        flusher = build_flusher(config, store, events, upstream, self._observer.flushed)
        lists = ListChecks(_no_member if config.is_offline else upstream.check_attribute)
        environment = Environment(
            sdk_key=config.sdk_key,
            upstream=upstream,
            mirror=mirror,
            events=events,
            flusher=flusher,
            usage=UsageStatistics(choose_sink(config, upstream), self._observer.usage_finished),
            lists=lists,
            evaluator=self._build_evaluator(lists),
            waiting=build_watch(config, store, events, stuck_after_seconds),
            load_device=self._device.load,
            settings_seconds=config.socket_timeout_seconds,
            flush_seconds=config.shutdown_seconds * FLUSH_SHARE,
        )
        mirror.subscribe(environment.settings_changed)
        return environment

    def _build_mirror(self, upstream: Upstream) -> SettingsMirror:
        config = self._config
        return SettingsMirror(
            self._store.state,
            settings_source(config, upstream),
            name=document_name(config.account.id or "file", config.account.sdk_key, "server-1"),
            owner=self._owner,
            source="file" if config.is_offline else "upstream",
            poll_seconds=config.poll_seconds,
            sdk=core.Sdk(config.sdk_name, __version__),
            bootstrap=None if config.is_offline else config.settings_file,
            on_poll=self._observer.polled,
            check=partial(check_account, config.account_id),
        )

    def _build_evaluator(self, lists: ListChecks) -> Evaluator:
        config, state = self._config, self._store.state
        return Evaluator(
            self._location,
            self._device,
            lists,
            aliases=state if config.aliasing_enabled else None,
            sticky=StickyDecisions(state, config.sticky_seconds) if config.sticky_decisions else None,
            slow_patterns=SlowPatterns(),
        )

    # --- Routes and pages ---

    def _build_router(self) -> Router:
        config, mirror = self._config, self.environments.default.mirror
        endpoints = self._build_endpoints()
        disabled = () if config.decision_required else (DECISIONS,)
        router = Router(endpoints, disabled=disabled, serves_browsers=config.cors_config_required)
        mirror.subscribe(self.environments.settings_changed, router.settings_changed)
        mirror.subscribe(endpoints.flags.settings_changed, endpoints.settings.settings_changed)
        return router

    def _build_endpoints(self) -> Endpoints:
        config, environments = self._config, self.environments
        client_address = build_client_address(config)
        return Endpoints(
            FlagsApi(environments, self._observer.decided),
            EventsApi(environments, client_address, slice_events=config.max_events_per_request),
            self._build_settings_api(),
            self._build_visitors_api(client_address),
            ListsApi(environments),
            AliasesApi(environments, self._store.state),
        )

    def _build_visitors_api(self, client_address: ClientAddress) -> VisitorsApi:
        config = self._config
        return VisitorsApi(
            self.environments,
            self._location,
            self._device,
            client_address,
            ip_fallback=config.client_ip_fallback,
            serves_browsers=config.cors_config_required,
        )

    def _build_settings_api(self) -> SettingsApi:
        config, environment, slot = self._config, self.environments.default, self._slot
        webhook = TokenCheck(config.webhook_token, slot.scoreboard.webhook_attempts, slot.row)
        return SettingsApi(
            self.environments,
            settings_source(config, environment.upstream, pull=True),
            None if config.is_offline else environment.upstream.fetch_settings,
            poll_seconds=config.poll_seconds,
            wait_seconds=config.socket_timeout_seconds,
            webhook_token=webhook if config.webhook_token else None,
            client_address=build_client_address(config),
            turns=slot.scoreboard.pull_turns,
        )

    def _build_admin(self) -> AdminApi:
        environment = self.environments.default
        latencies = partial(request_latencies, self._memory)
        admin = AdminApi(
            environment.mirror,
            environment.events,
            self._store.events,
            Explainer(environment.evaluator),
            self._location,
            self.status,
            latencies,
            RecentEvents(self._slot.scoreboard.recent, self._slot.row, self._config.sdk_key or ""),
        )
        environment.events.subscribe(committed=admin.recent.note)
        return admin

    def _build_pages(self) -> HTTPServerConnectionDelegate:
        config = self._config
        about = About(__version__, config.event_queue_limit)
        exposition = Exposition(self._memory, self._slot.scoreboard, about, lambda: self.publication.publish())
        return build_application(
            self.environments.default.mirror,
            self.status,
            self.stopping.is_set,
            self._admin,
            # `serve` has chosen the token before it started this worker. Without one, no request is authorized.
            Auth(
                config.admin_token or secrets.token_urlsafe(),
                build_client_address(config),
                self._slot.scoreboard.admin_attempts,
                self._slot.row,
                EndedSessions(self._store.state),
            ),
            exposition.render,
        )

    def _build_server(self) -> Server:
        router, cors = self._build_router(), build_cors(self._config)
        tracing = Tracing(None if cors is None else cors.header_lines)
        options = ServerOptions(
            self._observer.sampled(router.find),
            self._build_pages(),
            limits=build_limits(self._config),
            body_limit=partial(_body_limit, self._config, router),
            on_response=tracing.with_log(self._observer.responded),
            extra_header_lines=tracing.header_lines,
            guard=OriginCheck(cors, router.carries_events),
            echo_headers=tracing.echo_headers,
            lenient=router.is_sdk_path,
            proxy_trusts=build_client_address(self._config).trusts if self._config.proxy_protocol else None,
            page_lines=None if cors is None else cors.page_lines,
        )
        return Server(options, self._certificates.context if self._certificates else None)

    # --- Work beside requests ---

    def _build_adoption(self) -> Adoption:
        return Adoption(self._store.events, self.environments.default, self._slot.scoreboard, self.stopping)

    def _build_publication(self) -> Publication:
        return Publication(
            self._slot,
            self._observer,
            self.environments.default,
            self._store.events,
            self._location,
            self._device,
            self.server,
            self._adoption,
            self._build_problems(),
            self.stopping,
            is_shared=self._config.uses_redis,
        )

    def _build_problems(self) -> Problems:
        config, slow_patterns = self._config, self.environments.default.evaluator.slow_patterns
        cert, key = config.tls_cert_path, config.tls_key_path
        expiry = ExpiryReport(cert, key) if cert is not None and key is not None else None
        return Problems(config.data_dir, self._location, slow_patterns, expiry)


def build_store(config: Config, owner: str) -> Store:
    """Return the embedded store; with Redis, that one, and the embedded event log for the time when Redis fails."""
    if not config.uses_redis:
        return open_sqlite(config.data_dir, config.store_sync, config.namespace)
    from tornado_gateway.store.redis.events import open_redis  # not needed without Redis
    from tornado_gateway.store.redis.takeover import take_over
    from tornado_gateway.store.spill import SpillingEvents

    options = redis_options(config)
    redis = open_redis(options, config.namespace, owner)
    # A machine shows one number of dead events: those in Redis, and all in its directory.
    local = SqliteEvents(config.data_dir, config.store_sync, counts_all_letters=True)
    patience_seconds = 2 * config.socket_timeout_seconds  # requests to Redis have timed out by then
    events = SpillingEvents(redis.events, local, patience_seconds=patience_seconds)
    return Store(events, redis.state, take_over(options, config.former_namespace, config.namespace, owner))


def build_limits(config: Config) -> Limits:
    return Limits(
        max_body_bytes=config.max_body_bytes,
        keep_alive_seconds=config.keep_alive_seconds,
        max_connections=config.max_connections or max_connections(open_files_limit()),
    )


def build_cors(config: Config) -> Cors | None:
    return Cors(config.cors_allowed_origins) if config.cors_config_required else None


def build_client_address(config: Config) -> ClientAddress:
    return ClientAddress(config.trusted_proxies, config.trusted_address_header)


def build_upstream(config: Config, on_response: Callable[[str, int], None]) -> Upstream:
    return Upstream(
        config.upstream_url,
        config.collect_url,
        *config.account,
        sdk_name=config.sdk_name,
        sdk_version=__version__,
        timeout_seconds=config.socket_timeout_seconds,
        ca_path=config.upstream_ca_path,
        on_response=on_response,
    )


def build_queue(config: Config, store: Store) -> EventQueue:
    events = EventQueue(
        store.events,
        limit=config.event_queue_limit,
        limit_bytes=config.event_queue_bytes,
        chunk_events=config.events_per_request,
        dead_letter_limit=config.dead_letter_limit,
        durable=config.event_ack == "durable",
        shared=config.uses_redis,
        decisions_need_store=config.event_queue_full == "refuse",
        commit_seconds=COMMIT_SECONDS + (2 * config.socket_timeout_seconds if config.uses_redis else 0),
    )
    events.use_identity(Identity(*config.account))
    return events


def build_flusher(
    config: Config, store: Store, events: EventQueue, upstream: Upstream, on_request: Callable[[str, float], None]
) -> Flusher:
    sink = choose_sink(config, upstream)
    return Flusher(
        store.events,
        events,
        sink,
        events_per_request=config.events_per_request,
        interval_seconds=config.flush_seconds,
        on_request=on_request,
        discards=isinstance(sink, DiscardingSink),
    )


def build_watch(config: Config, store: Store, events: EventQueue, stuck_after_seconds: float | None) -> Watch:
    return Watch(
        store.events,
        lambda: events.counts.waiting,
        stuck_after_seconds or stuck_after(config.flush_seconds, config.socket_timeout_seconds),
        is_shared=config.uses_redis,
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


def build_certificates(config: Config) -> Certificates | None:
    if config.tls_cert_path and config.tls_key_path:
        return Certificates(config.tls_cert_path, config.tls_key_path)
    return None


def _body_limit(config: Config, router: Router, path: bytes) -> int:
    if router.takes_batches(path):
        return config.max_batch_bytes
    return config.max_event_bytes if router.takes_events(path) else config.max_body_bytes


async def _no_member(list_id: str, value: str) -> bool:
    """Return False: without upstream, no list is known."""
    return False


async def _read_file(path: Path) -> bytes:
    return read_document(path)
