"""Adoption: the events of workers that have ended move into the log of this worker."""

import asyncio
import logging
import random

from tornado_gateway.environments.environment import Environment
from tornado_gateway.errors import StoreError
from tornado_gateway.store.interfaces import EventStore
from tornado_gateway.tasks import wait_at_most
from tornado_gateway.telemetry.scoreboard import Scoreboard

logger = logging.getLogger(__name__)

ADOPT_SECONDS = 10.0  # between two searches for the logs of ended workers


class Adoption:
    """Adopts the events of workers that have ended without being replaced, or with events left.

    Create it before the store is opened, because opening already adopts a log. `stopping` ends it. While no worker of
    this gateway ends, it searches `pace` times as rarely.
    """

    def __init__(
        self,
        store: EventStore,
        environment: Environment,
        scoreboard: Scoreboard,
        stopping: asyncio.Event,
        *,
        interval_seconds: float = ADOPT_SECONDS,
        pace: int = 1,
    ) -> None:
        self._store = store
        self._environment = environment
        self._scoreboard = scoreboard
        self._stopping = stopping
        self._interval_seconds = interval_seconds
        self._pace = pace
        self._retirements = scoreboard.retirements  # when logs were last adopted
        self._task: asyncio.Task[None] | None = None

    @property
    def adopted(self) -> int:
        """The number of processes that had ended when their logs were last adopted and counted here."""
        return self._retirements if self._environment.has_counted else 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Wait for the end. An adoption is not cancelled, because that would unlock the other log too early."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        rounds = random.randrange(self._pace)
        while not await wait_at_most(self._stopping, self._interval_seconds * random.uniform(0.5, 1.0)):
            rounds += 1
            if rounds % self._pace == 0 or self._scoreboard.retirements != self._retirements:
                await self._adopt()

    async def _adopt(self) -> None:
        ended = self._scoreboard.retirements
        try:
            try:
                if moved := await self._store.adopt():
                    logger.info("adopted %d events of a worker that has ended", moved)
            finally:  # a part may have been adopted
                await self._environment.events.recount_after_adoption()
        except (StoreError, OSError) as error:
            logger.error("the events of an ended worker could not be adopted, retrying: %s", error)
        else:
            self._retirements = ended
