"""Publication: the record and the counters of this worker, for /status and the metrics of all workers."""

import asyncio
import os
import time
from typing import Any

import orjson

from tornado_gateway.api.streams import StreamsApi
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.http.server import Server
from tornado_gateway.process.environments.served import Served
from tornado_gateway.process.environments.serving import Serving
from tornado_gateway.process.open_files import open_files_limit
from tornado_gateway.process.parent.worker_process import WorkerSlot
from tornado_gateway.process.status import Problems, environment_record
from tornado_gateway.tasks import PAUSE_SECONDS, Periodic, pace_of
from tornado_gateway.telemetry.observer import Observer
from tornado_gateway.telemetry.scoreboard import WorkerRecord

PUBLISH_SECONDS = 0.25  # maximum age of the numbers of other workers in /status; of many environments a multiple
PARTS_AT_ONCE = 8  # environments whose parts are made in one turn of the loop: 0.3 ms


class Publication:
    """Publishes regularly, which is also the heartbeat of this worker. `is_shared`: other machines use the store."""

    def __init__(
        self,
        slot: WorkerSlot,
        observer: Observer,
        serving: Serving,
        location: LocationReader,
        device: DeviceReader,
        server: Server,
        streams: StreamsApi,
        problems: Problems,
        stopping: asyncio.Event,
        *,
        is_shared: bool,
    ) -> None:
        self._slot = slot
        self._observer = observer
        self._serving = serving
        self._location = location
        self._device = device
        self._server = server
        self._streams = streams
        self.problems = problems
        self._stopping = stopping
        self._is_shared = is_shared
        self._started_at = time.monotonic()
        self._parts: dict[str, orjson.Fragment] = {}  # of the environments, as they were made last
        self._tick = 0
        self._timer = Periodic(self._publish_regularly, PUBLISH_SECONDS, jitter=0.1)

    def start(self) -> None:
        self.publish()
        self._timer.start()

    def stop(self) -> None:
        """Stop, and publish the final numbers."""
        self._timer.stop()
        self.publish()

    def publish(self) -> None:
        """Publish everything now."""
        self._parts.clear()
        self._publish()

    async def _publish_regularly(self) -> None:
        """Renew the parts of environments, of many some each time, a few between two pauses. Then publish."""
        served = self._serving.with_drained() if self._serving.is_from_file else []
        pace = pace_of(len(served))
        self._tick += 1
        due = served[self._tick % pace :: pace]
        for first in range(0, len(due), PARTS_AT_ONCE):
            for one in due[first : first + PARTS_AT_ONCE]:
                self._renew(one)
            await asyncio.sleep(PAUSE_SECONDS)
        self._publish()

    def _publish(self) -> None:
        self._slot.scoreboard.beat(self._slot.row)
        self._collect()
        served = self._serving.all
        is_failing = any(one.store.events.failure for one in served)
        self._observer.publish(
            {
                "geo_built_at": self._location.build_epoch,
                "degraded": float(is_failing or any(one.environment.events.failure for one in served)),
                "streams": float(self._streams.count),
                "redis_up": float(not is_failing) if self._is_shared else None,
            }
        )
        self._slot.scoreboard.publish(self._slot.row, self._record())

    def _collect(self) -> None:
        """Add what caches have counted, and the only environment. Those of ENVIRONMENTS_FILE have it in their parts."""
        self._observer.count_lookups("location", self._location.hits, self._location.misses)
        self._observer.count_lookups("device", self._device.hits, self._device.misses)
        if not self._serving.is_from_file:
            only = self._serving.first
            self._observer.count_decisions(only.config.name, only.counts.decisions)

    def _record(self) -> WorkerRecord:
        """Return the part of this worker's state that other workers may see."""
        return {
            "pid": os.getpid(),
            "slot": self._slot.number,
            "row": self._slot.row,
            "generation": self._slot.generation,
            "is_queue_shared": self._is_shared,
            "uptime_seconds": round(time.monotonic() - self._started_at, 3),
            "state": self._state(),
            **self._traffic(),
            **environment_record(self._serving.first, self._excess()),
            **self._environments(),
            **self.problems.record(self._serving.all),
        }

    def _environments(self) -> dict[str, Any]:
        """Return the parts of the environments of ENVIRONMENTS_FILE, removed ones with waiting events included."""
        if not self._serving.is_from_file:
            return {}
        parts = self._parts
        made = {(name := one.config.name): parts.get(name) or self._renew(one) for one in self._serving.with_drained()}
        return {"environments": made}

    def _renew(self, served: Served) -> orjson.Fragment:
        part = self._parts[served.config.name] = orjson.Fragment(orjson.dumps(_part(served)))
        return part

    def _traffic(self) -> dict[str, Any]:
        requests, decisions = self._observer.totals()
        return {
            "connections": self._server.connections,
            "in_flight": self._server.in_flight,
            "connections_limit": self._server.options.limits.max_connections or None,
            "open_files_limit": open_files_limit(),
            "requests": {"total": requests, "decisions": decisions},
        }

    def _excess(self) -> str | None:
        """Return the problem in words if new clients get a 503, because this worker has no files left for them."""
        limit = self._server.options.limits.max_connections
        if not limit or self._server.connections < limit:
            return None
        return f"too many connections: {limit} are open, and new ones get a 503; raise the limit of open files"

    def _state(self) -> str:
        if self._stopping.is_set():
            return "stopping"
        return "serving" if self._server.port else "starting"


def _part(served: Served) -> dict[str, Any]:
    config = served.config.config
    return {
        "account_id": config.account_id,
        "is_removed": served.is_draining,
        "counts": served.counts.as_record(),
        **environment_record(served, None),
    }
