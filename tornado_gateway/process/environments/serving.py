"""The environments that a worker serves. Everything that adds, changes or removes one is in this file."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence

from tornado_gateway.config.environments import EnvironmentConfig
from tornado_gateway.environments.registry import Environments
from tornado_gateway.environments.several import SeveralEnvironments
from tornado_gateway.environments.single import SingleEnvironment
from tornado_gateway.http.messages import Request
from tornado_gateway.process.environments.served import Served

logger = logging.getLogger(__name__)

Make = Callable[[EnvironmentConfig, int], Served]


class Serving:
    """All environments of a worker. `make` makes one of so many.

    Removed ones are kept until their events are delivered.
    """

    def __init__(
        self,
        make: Make,
        configs: Sequence[EnvironmentConfig],
        on_unidentified: Callable[[Request], None],
    ) -> None:
        self.all = [make(config, len(configs)) for config in configs]
        self.is_from_file = self.all[0].owns_store
        environments, needs_key = [one.environment for one in self.all], configs[0].config.client_key_required
        self.environments: Environments = (
            SeveralEnvironments(environments, needs_key=needs_key, on_unidentified=on_unidentified)
            if self.is_from_file
            else SingleEnvironment(environments, needs_key=needs_key)
        )
        self._make = make
        self._connect: Callable[[Served], None] = lambda served: None
        self._drained: set[Served] = set()
        self._changing = asyncio.Lock()

    @property
    def first(self) -> Served:
        """The default environment, or any one if there is none."""
        first = self.environments.first
        return next(one for one in self.all if one.environment is first)

    def named(self, name: str) -> Served | None:
        return next((one for one in self.all if one.config.name == name), None)

    def with_drained(self) -> list[Served]:
        """Return all environments, then the removed ones whose events are not yet delivered."""
        names = {one.config.name for one in self.all}
        return [*self.all, *(one for one in self._drained if one.config.name not in names)]

    def connect(self, connect: Callable[[Served], None]) -> None:
        """Call `connect` with each environment, those of later versions of the file included, before it starts."""
        self._connect = connect
        for one in self.all:
            connect(one)

    async def start(self) -> None:
        """Start all. Raise StartError if one of them cannot start."""
        await _start(self.all)

    async def stop(self) -> None:
        async with self._changing:
            _raise_first(await _all(one.stop() for one in [*self.all, *self._drained]))

    async def change(self, configs: Sequence[EnvironmentConfig]) -> bool:
        """Serve these environments from now on. Return whether anything has changed.

        Raise StartError, and change nothing, if a new one cannot start.
        """
        async with self._changing:
            known = {one.identity for one in self.all}
            wanted = {(config.name, config.config.account_id): config for config in configs}
            returning = [one for one in self._drained if one.identity in wanted and one.identity not in known]
            resumed = [one for one in returning if one.can_resume]
            for one in resumed:  # before anything is awaited: its events may be delivered meanwhile, and it be closed
                one.keep()
            known |= {one.identity for one in resumed}
            try:
                await _all(one.stop() for one in returning if one not in resumed)  # they have the store of the new one
                new = await self._started([config for identity, config in wanted.items() if identity not in known])
                _raise_first(await _all(one.resume() for one in resumed))
            except BaseException:
                for one in resumed:
                    one.drain(self._drained)
                raise
            self._drained.difference_update(resumed)
            return self._replace(configs, [*self.all, *resumed, *new])

    async def _started(self, configs: Sequence[EnvironmentConfig]) -> list[Served]:
        new = [self._make(config, len(self.all) + len(configs)) for config in configs]
        for one in new:
            self._connect(one)
        await _start(new)
        return new

    def _replace(self, configs: Sequence[EnvironmentConfig], candidates: Sequence[Served]) -> bool:
        by_identity = {one.identity: one for one in candidates}
        before, after = self.all, [by_identity[config.name, config.config.account_id] for config in configs]
        changed = [(one, config) for one, config in zip(after, configs, strict=True) if one.config != config]
        for one, config in changed:
            one.change(config)
        self.all = after
        self.environments.replace([one.environment for one in after])
        removed = [one for one in before if one not in after]
        for one in removed:
            one.drain(self._drained)
        signs = [
            *(f"+{one.config.name}" for one in after if one not in before),
            *(f"-{one.config.name}" for one in removed),
            *(f"~{one.config.name}" for one, _ in changed if one in before),
        ]
        if signs:
            logger.info("environments: %s", " ".join(signs))
        return bool(signs)


async def _start(served: Sequence[Served]) -> None:
    """Start all of them at the same time. If one fails, stop the others and raise its error."""
    errors = await _all(one.start() for one in served)
    if errors:
        await _all(one.stop() for one in served)
    _raise_first(errors)


async def _all(actions: Iterable[Coroutine[None, None, None]]) -> list[BaseException]:
    """Wait for all of them. Return their errors."""
    results = await asyncio.gather(*actions, return_exceptions=True)
    return [result for result in results if result is not None]


def _raise_first(errors: Sequence[BaseException]) -> None:
    if errors:
        raise errors[0]
