"""Assembly: all parts of one worker, made from the configuration. The only module that knows most of the others."""

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

from tornado.httputil import HTTPServerConnectionDelegate

from tornado_gateway import __version__
from tornado_gateway.api.aliases import AliasesApi
from tornado_gateway.api.cors import Cors, EnvironmentsCors, OriginCheck
from tornado_gateway.api.endpoints import Endpoints
from tornado_gateway.api.events import EventsApi
from tornado_gateway.api.flags import FlagsApi
from tornado_gateway.api.lists import ListsApi
from tornado_gateway.api.ofrep.bulk import BulkApi
from tornado_gateway.api.ofrep.context import Browsers
from tornado_gateway.api.ofrep.evaluation import EvaluationApi
from tornado_gateway.api.ofrep.exposures import ExposuresApi
from tornado_gateway.api.router import Router
from tornado_gateway.api.settings import SettingsApi
from tornado_gateway.api.streams import StreamLimits, StreamsApi
from tornado_gateway.api.visitors import VisitorsApi
from tornado_gateway.config import Config, EnvironmentConfig
from tornado_gateway.console.admin_pages import AdminApi, Operated
from tornado_gateway.console.auth import Auth, EndedSessions
from tornado_gateway.console.explain import Explainer
from tornado_gateway.console.insight.live_feed import LiveFeed
from tornado_gateway.console.overview import History, request_latencies
from tornado_gateway.console.pages import build_application
from tornado_gateway.console.recent_events import RecentEvents
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import StartError
from tornado_gateway.events.group_commit import Commits
from tornado_gateway.http.certificates import Certificates
from tornado_gateway.http.fields import ClientAddress
from tornado_gateway.http.limits import Limits, ServerOptions
from tornado_gateway.http.messages import Response, too_large
from tornado_gateway.http.request_ids import Tracing
from tornado_gateway.http.server import Server
from tornado_gateway.process.certificate_expiry import ExpiryReport
from tornado_gateway.process.counters import new_counters
from tornado_gateway.process.environments.build import FLUSH_SHARE, Shared
from tornado_gateway.process.environments.client_auth import Credentials
from tornado_gateway.process.environments.experiments import experiment_figures, mismatches
from tornado_gateway.process.environments.reload import Reload, read_environments
from tornado_gateway.process.environments.served import STORE_REMEDY, Served
from tornado_gateway.process.environments.serving import Serving
from tornado_gateway.process.environments.stores import Stores, data_dir_of, report_unknown, settings_name
from tornado_gateway.process.location_parts import location_parts
from tornado_gateway.process.open_files import max_connections, open_files_limit
from tornado_gateway.process.parent.sockets import PORT_REMEDY
from tornado_gateway.process.parent.worker_process import WorkerSlot
from tornado_gateway.process.parts import Part, explaining
from tornado_gateway.process.publication import Publication
from tornado_gateway.process.status import Problems, instance_counts, instance_status
from tornado_gateway.settings.failures import UNUSABLE
from tornado_gateway.settings.history import SettingsHistory
from tornado_gateway.store.interfaces import StateStore
from tornado_gateway.telemetry.attempts import TokenCheck
from tornado_gateway.telemetry.counters import SharedCounters
from tornado_gateway.telemetry.judging.verdict import Verdict
from tornado_gateway.telemetry.observer import Observer
from tornado_gateway.telemetry.prometheus import About, Exposition
from tornado_gateway.telemetry.series import Series
from tornado_gateway.upstream.client import Connections

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
        environments: Sequence[EnvironmentConfig] | None = None,
    ) -> None:
        self._config = config
        self._slot = slot
        self._memory = memory or new_counters(slot.scoreboard.rows)
        self._verdict = Verdict(slot.scoreboard, self._memory, config.environments_file)
        self.stopping = asyncio.Event()
        self._observer = Observer(self._memory, slot.row, slot.generation)
        self._shared = build_shared(config, self._observer, stuck_after_seconds)
        with explaining(TLS_REMEDY):
            self._certificates = build_certificates(config)
        make = partial(Served, self._shared, scoreboard=slot.scoreboard, stopping=self.stopping)
        self.serving = Serving(make, read_environments(config, environments), self._observer.unidentified)
        self._state = self._common_state()
        address, attempts = build_client_address(config), slot.scoreboard.client_attempts
        self._credentials = Credentials(config, self.environments, address, attempts, slot.row)
        self._admin = self._build_admin()
        settings = self._build_settings_api()
        self._streams = self._build_streams(settings)
        self.server = self._build_server(settings)
        self.publication = self._build_publication()

    @property
    def environments(self) -> Environments:
        return self.serving.environments

    @property
    def location(self) -> LocationReader:
        return self._shared.location

    def parts(self) -> list[Part]:
        """Return the parts in the order of their start. They stop in the reverse order: requests first."""
        server, deadline = self.server, self._config.shutdown_seconds
        return [
            Part("publication", self.publication.start, self.publication.stop),
            Part("connections", lambda: None, self._shared.connections.close),
            self._store_part(),
            *location_parts(self._config, self._state, self._shared.location, self._shared.owner),
            Part("problems", self.publication.problems.start, self.publication.problems.stop),
            *self._environment_parts(),
            Part("client tokens", self._credentials.start, self._credentials.stop),
            *self._certificate_parts(),
            Part(
                "server",
                lambda: server.listen(sock=self._slot.sock),
                lambda: server.stop(deadline * (1 - FLUSH_SHARE)),
                PORT_REMEDY,
            ),
            Part("streams", self._streams.start, self._streams.stop),
            Part("lag measurement", self._observer.start, self._observer.stop),
            Part("console", self._admin.start, self._admin.stop),
        ]

    def _common_state(self) -> StateStore:
        """Return the state that belongs to no environment: with one, that of its store."""
        serving = self.serving
        return self._shared.stores.common_state() if serving.is_from_file else serving.first.store.state

    def _store_part(self) -> Part:
        store = self._state if self.serving.is_from_file else self.serving.first.store
        return Part("store", store.open, store.close, STORE_REMEDY)

    def _environment_parts(self) -> list[Part]:
        serving = self.serving
        if not serving.is_from_file:
            return [*serving.first.parts(), *self._settings_file_parts()]
        reload = Reload(self._config, serving)
        return [
            Part("environments", self._start_environments, serving.stop, STORE_REMEDY),
            Part("reload", reload.start, reload.stop),
        ]

    def _settings_file_parts(self) -> list[Part]:
        """Return the check of the only source of settings. Later workers wait until the file is corrected."""
        is_checked = self._slot.is_first and self._config.is_offline
        return [Part("settings file", self._check_settings_file, lambda: None)] if is_checked else []

    def _check_settings_file(self) -> None:
        mirror = self.serving.first.environment.mirror
        error = mirror.last_poll.error
        if mirror.current is None and error is not None:
            reason = error.removeprefix(f"{UNUSABLE}: ")
            raise StartError(f"SETTINGS_FILE {self._config.settings_file} cannot be used: {reason}")

    async def _start_environments(self) -> None:
        await self.serving.start()
        if self._slot.number == 0:  # once, not for each worker
            report_unknown(self._config, {data_dir_of(one.config.config) for one in self.serving.all})

    def _certificate_parts(self) -> list[Part]:
        certificates = self._certificates
        return [] if certificates is None else [Part("certificates", certificates.start, certificates.stop)]

    def status(self) -> dict[str, Any]:
        """Return the body of /status, which is that of the whole instance for any worker."""
        self.publication.publish()
        return instance_status(self._slot.scoreboard, __version__, self._verdict)

    # --- Routes and pages ---

    def _build_router(self, settings: SettingsApi) -> Router:
        config = self._config
        endpoints = self._build_endpoints(settings)
        router = Router(endpoints, serves_browsers=config.cors_config_required, protect=self._credentials.protect)

        def connect(served: Served) -> None:
            mirror = served.environment.mirror
            mirror.subscribe(self.environments.settings_changed, router.settings_changed)
            mirror.subscribe(endpoints.flags.settings_changed)
            served.environment.events.subscribe(committed=self._admin.recent.note)
            served.environment.events.subscribe(committed=partial(self._admin.live.committed, served.environment))

        self.serving.connect(connect)
        return router

    def _build_endpoints(self, settings: SettingsApi) -> Endpoints:
        config, environments = self._config, self.environments
        client_address = build_client_address(config)
        streams = self._streams
        return Endpoints(
            FlagsApi(environments),
            EventsApi(environments, client_address, slice_events=config.max_events_per_request),
            settings,
            self._build_visitors_api(client_address),
            ListsApi(environments),
            AliasesApi(environments),
            BulkApi(environments),
            EvaluationApi(
                environments,
                Browsers(client_address),
                streams.announcement,
                streams.catch_up,
                wait_seconds=config.socket_timeout_seconds,
            ),
            ExposuresApi(environments, self._observer.exposures_tracked),
            streams,
        )

    def _build_visitors_api(self, client_address: ClientAddress) -> VisitorsApi:
        config = self._config
        return VisitorsApi(
            self.environments,
            self._shared.location,
            self._shared.device,
            client_address,
            ip_fallback=config.client_ip_fallback,
            serves_browsers=config.cors_config_required,
        )

    def _build_settings_api(self) -> SettingsApi:
        config, slot = self._config, self._slot
        return SettingsApi(
            self.environments,
            poll_seconds=config.poll_seconds,
            wait_seconds=config.socket_timeout_seconds,
            webhook_tokens=TokenCheck(None, slot.scoreboard.webhook_attempts, slot.row),
            client_address=build_client_address(config),
            turns=slot.scoreboard.pull_turns,
        )

    def _build_streams(self, settings: SettingsApi) -> StreamsApi:
        config = self._config
        limits = StreamLimits(
            config.stream_max_connections,
            config.stream_keepalive_seconds,
            config.stream_max_seconds,
            config.stream_notify_per_second,
            config.socket_timeout_seconds,
            config.stream_url,
        )
        address, tickets = build_client_address(config), self._credentials.tickets
        return StreamsApi(
            self.environments, limits, address, settings.refresh, tickets, on_closed=self._observer.stream_closed
        )

    def _build_admin(self) -> AdminApi:
        board = self._slot.scoreboard
        return AdminApi(
            self._operated,
            self._shared.location,
            self.status,
            History(
                partial(instance_counts, board),
                partial(request_latencies, self._memory),
                Series(board.series, self._slot.row),
            ),
            LiveFeed(board, self._slot.row, self.environments),
            RecentEvents(board.recent, self._slot.row, self._config.sdk_key or ""),
        )

    def _operated(self, name: str | None) -> Operated | None:
        served = self.serving.first if name is None else self.serving.named(name)
        if served is None:
            return None
        environment, experiments = served.environment, served.environment.experiments
        name, mirror = settings_name(served.config.config), environment.mirror
        return Operated(
            mirror,
            environment.events,
            served.store.events,
            Explainer(environment.evaluator, self._shared.location),
            SettingsHistory(served.store.state, name, mirror.compile),
            experiments.report,
            experiments.usage_report,
        )

    def _build_pages(self) -> HTTPServerConnectionDelegate:
        config = self._config
        about = About(__version__, config.event_queue_limit)
        figures = partial(experiment_figures, self.serving, by_feature=config.metrics_by_feature)
        exposition = Exposition(self._memory, self._slot.scoreboard, about, lambda: self.publication.publish(), figures)
        return build_application(
            self.environments,
            self.status,
            self.stopping.is_set,
            self._admin,
            # `serve` has chosen the token before it started this worker. Without one, no request is authorized.
            Auth(
                config.admin_token or secrets.token_urlsafe(),
                build_client_address(config),
                self._slot.scoreboard.admin_attempts,
                self._slot.row,
                EndedSessions(self._state),
            ),
            exposition.render,
            needs_all=config.ready_requires == "all",
        )

    def _build_server(self, settings: SettingsApi) -> Server:
        router, cors = self._build_router(settings), build_cors(self._config, self.environments)
        tracing = Tracing(None if cors is None else cors.header_lines)
        options = ServerOptions(
            self._observer.sampled(router.find),
            self._build_pages(),
            limits=build_limits(self._config, len(self.serving.all)),
            body_limit=partial(_body_limit, self._config, router),
            on_response=tracing.with_log(self._observer.responded),
            extra_header_lines=tracing.header_lines,
            guard=OriginCheck(cors, router.carries_events, router.shaped),
            echo_headers=tracing.echo_headers,
            lenient=router.is_sdk_path,
            page_lines=None if cors is None else cors.page_lines,
            error_shape=router.error_response,
        )
        proxy_trusts = build_client_address(self._config).trusts if self._config.proxy_protocol else None
        return Server(options, self._certificates.context if self._certificates else None, proxy_trusts)

    # --- Work beside requests ---

    def _build_publication(self) -> Publication:
        return Publication(
            self._slot,
            self._observer,
            self.serving,
            self._shared.location,
            self._shared.device,
            self.server,
            self._streams,
            self._build_problems(),
            self.stopping,
            is_shared=self._config.uses_redis,
        )

    def _build_problems(self) -> Problems:
        config = self._config
        cert, key = config.tls_cert_path, config.tls_key_path
        expiry = ExpiryReport(cert, key) if cert is not None and key is not None else None
        reports = mismatches if self._slot.number == 0 else (lambda serving: ())  # once, not for each worker
        return Problems(
            config.data_dir, self._shared.location, self._shared.slow_patterns, expiry, partial(reports, self.serving)
        )


def build_shared(config: Config, observer: Observer, stuck_after_seconds: float | None) -> Shared:
    owner = f"{socket.gethostname()}:{os.getpid()}"
    with explaining(GEO_MAP_REMEDY):
        location = LocationReader(config.location_database, config.geo_map_file, copy_directory=config.data_dir)
    with explaining(UA_MAP_REMEDY):
        device = DeviceReader(map_file=config.ua_map_file)
    connections = Connections(config.sdk_name, __version__, config.socket_timeout_seconds, config.upstream_ca_path)
    stores = Stores(config, owner)
    commits = None if stores.together is None else Commits(stores.together)
    return Shared(owner, stores, commits, location, device, connections, observer, stuck_after_seconds)


def build_limits(config: Config, environments: int) -> Limits:
    return Limits(
        max_body_bytes=config.max_body_bytes,
        keep_alive_seconds=config.keep_alive_seconds,
        max_connections=config.max_connections or max_connections(open_files_limit(), environments),
    )


def build_cors(config: Config, environments: Environments) -> Cors | EnvironmentsCors | None:
    if not config.cors_config_required:
        return None
    return EnvironmentsCors(environments) if config.environments_file else Cors(config.cors_allowed_origins)


def build_client_address(config: Config) -> ClientAddress:
    return ClientAddress(config.trusted_proxies, config.trusted_address_header)


def build_certificates(config: Config) -> Certificates | None:
    if config.tls_cert_path and config.tls_key_path:
        return Certificates(config.tls_cert_path, config.tls_key_path)
    return None


def _body_limit(config: Config, router: Router, path: bytes) -> tuple[int, Response]:
    most = config.max_body_bytes
    if router.takes_batches(path):
        most = config.max_batch_bytes
    elif router.takes_events(path) or path == b"/admin/events/edit":  # which has an event
        most = config.max_event_bytes
    return most, router.shaped(path, too_large(most, "MAX_BODY_BYTES"))
