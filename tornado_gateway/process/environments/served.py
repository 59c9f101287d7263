"""An environment while it is served, with its store: started, changed in place, and drained when it is removed."""

import asyncio
import contextvars
import gc
import logging
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

from tornado_gateway import logs
from tornado_gateway.config.environments import EnvironmentConfig
from tornado_gateway.errors import GatewayError, StoreError
from tornado_gateway.process.adoption import Adoption
from tornado_gateway.process.environments.access import build_access
from tornado_gateway.process.environments.build import Builder, Shared, build_evaluator
from tornado_gateway.process.parts import Part, enter
from tornado_gateway.tasks import end_tasks, pace_of
from tornado_gateway.telemetry.scoreboard import Scoreboard

logger = logging.getLogger(__name__)

DRAINED_SECONDS = 1.0  # between two checks whether the events of a removed environment are delivered
STORE_REMEDY = (
    "Make DATA_DIR a directory that the gateway's user may write to. If a file in it is damaged, move it elsewhere: the"
    " next start creates a new one."
)


class Served:
    """An environment with its store, one of `number`. `config` is that of its last start or change.

    With ENVIRONMENTS_FILE its log lines begin with its name, and `owns_store` is true: it opens its store itself.
    """

    def __init__(
        self, shared: Shared, config: EnvironmentConfig, number: int, scoreboard: Scoreboard, stopping: asyncio.Event
    ) -> None:
        self.config = config
        self.owns_store = config.config.environment_name is not None
        self._shared = shared
        self._scoreboard = scoreboard
        self._stopping = asyncio.Event() if self.owns_store else stopping  # ends the adoption of events
        self._context = contextvars.copy_context()
        if self.owns_store:
            self._context.run(logs.begin_lines_with, config.name)
        self._context.run(self._build, number)
        self._entered = AsyncExitStack()
        self._draining: asyncio.Task[None] | None = None

    def _build(self, number: int) -> None:
        builder = Builder(self._shared, self.config, number)
        self.counts = builder.counts
        self.store = builder.store
        self.environment = builder.build()
        self.waiting = builder.watch
        self.adoption = Adoption(
            self.store.events, self.environment, self._scoreboard, self._stopping, pace=pace_of(number)
        )

    @property
    def is_draining(self) -> bool:
        """Whether it was removed, and its events are being delivered."""
        return self._draining is not None

    @property
    def can_resume(self) -> bool:
        """Whether it is not being closed yet."""
        return not self._stopping.is_set()

    @property
    def identity(self) -> tuple[str, int | None]:
        """The name and the account, which name the store. If one of them changes, it is another environment."""
        return self.config.name, self.config.config.account_id

    # --- Start and stop ---

    def parts(self) -> list[Part]:
        environment, adoption, store = self.environment, self.adoption, self.store
        own = [Part("store", store.open, store.close, STORE_REMEDY)] if self.owns_store else []
        return [
            *own,
            Part("experiments", environment.experiments.start, environment.experiments.stop),
            Part("last count", lambda: None, self._count_remaining),
            Part("environment", environment.start, environment.stop, STORE_REMEDY),
            Part("waiting", self.waiting.start, self.waiting.stop),
            Part("adoption", adoption.start, adoption.stop),
        ]

    async def _count_remaining(self) -> None:
        """Count what remains in a shared store after the last flush, because the summary of the stop shows it."""
        if self.waiting.is_shared:
            await self.waiting.read_last(self.environment.events.recount_after_adoption)

    async def start(self) -> None:
        """Start all parts. If one of them fails, stop those that were started and raise StartError."""
        await self._in_context(self._start())

    async def stop(self) -> None:
        """Stop, and deliver until the deadline of the environment."""
        if self._draining is not None and not self.can_resume:
            await asyncio.wait([self._draining])
            return
        await end_tasks(self._draining)
        self._stopping.set()
        await self._in_context(self._entered.aclose())

    async def _start(self) -> None:
        async with AsyncExitStack() as entered:
            await enter(self.parts(), entered)
            self._entered = entered.pop_all()

    async def _in_context(self, work: Coroutine[Any, Any, None]) -> None:
        await asyncio.get_running_loop().create_task(work, context=self._context)

    # --- Reload ---

    def change(self, config: EnvironmentConfig) -> None:
        """Use a changed configuration of the same environment: at once, and its keys and URLs from the next poll on."""
        self.config = config
        options, environment = config.config, self.environment
        logs.hide(*config.secrets)
        environment.upstream.use_urls(options.upstream_url, options.collect_url)
        environment.upstream.keys.replace(config.sdk_keys)
        environment.use_access(build_access(config))
        environment.events.use_limit(options.event_queue_limit)
        environment.evaluator = build_evaluator(
            options,
            self._shared,
            self.store.state,
            environment.evaluator.lists,
            environment.experiments,
            environment.events,
        )
        environment.keys_changed()

    def drain(self, done: "DrainedSet") -> None:
        """Serve no requests any more, deliver the waiting events, then stop. `done` holds it until then."""
        done.add(self)
        self._draining = asyncio.get_running_loop().create_task(self._drain(done), context=self._context)

    def keep(self) -> None:
        """Do not stop when the events are delivered, because the environment came back: `resume` or `drain` follows."""
        if self._draining is not None:
            self._draining.cancel()

    async def resume(self) -> None:
        """Serve again after `keep`."""
        await end_tasks(self._draining)
        self._draining = None
        await self._in_context(self.environment.resume())

    async def _drain(self, done: "DrainedSet") -> None:
        await self.environment.pause()
        await asyncio.sleep(self.config.config.socket_timeout_seconds)  # for requests in progress, which may look up
        while await self._has_events():
            await asyncio.sleep(DRAINED_SECONDS)
        logger.info("all events are delivered, the environment is closed")
        self._stopping.set()
        try:
            await self._entered.aclose()
        except (GatewayError, OSError) as error:
            logger.error("the removed environment was closed with an error: %s", error)
        self.environment.mirror.forget()
        done.discard(self)
        if not done:
            _collect()

    async def _has_events(self) -> bool:
        """Return whether events wait. Those of a store that fails do."""
        try:
            return self.environment.events.counts.waiting > 0 or (await self.store.events.depth()).waiting > 0
        except StoreError:
            return True


def _collect() -> None:
    """Free the parts of removed environments, which are cycles. Compilations freeze them, so they have to thaw."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


DrainedSet = set[Served]
