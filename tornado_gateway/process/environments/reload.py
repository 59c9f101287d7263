"""ENVIRONMENTS_FILE is read again when it, or a file that it names, has changed, and at SIGHUP.

All or nothing: a file with a mistake is logged with all its mistakes and changes nothing. Each worker does this for
itself, so that none of them is replaced. A change whose new environment cannot start is tried again with a backoff.
"""

import asyncio
import logging
import math
import signal
from collections.abc import Sequence

from tornado_gateway.backoff import Backoff
from tornado_gateway.config import Config
from tornado_gateway.config.environments import EnvironmentConfig, environments_of, files_of
from tornado_gateway.errors import ConfigError, GatewayError
from tornado_gateway.logs import once
from tornado_gateway.process.environments.serving import Serving
from tornado_gateway.tasks import Periodic, Signature, signature

logger = logging.getLogger(__name__)

CHECK_SECONDS = 3.0
RETRY_FIRST_SECONDS = 3.0  # after a new environment could not start, such as for want of space for its store
RETRY_LONGEST_SECONDS = 120.0


def read_environments(
    config: Config, otherwise: Sequence[EnvironmentConfig] | None = None
) -> Sequence[EnvironmentConfig]:
    """Return the environments of the file. If it has a mistake, return the others; raise ConfigError without them."""
    try:
        return environments_of(config)
    except ConfigError as error:
        if otherwise is None:
            raise
        _log_problems(error.problems)
        return otherwise


class Reload:
    """Watches the file of `config`."""

    def __init__(
        self,
        config: Config,
        serving: Serving,
        check_seconds: float = CHECK_SECONDS,
        retry_seconds: tuple[float, float] = (RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS),
    ) -> None:
        self.error: str | None = None  # the mistakes of the newest file, if it is not in use
        self._config = config
        self._serving = serving
        self._files = files_of(config)
        self._seen: Signature = ()  # the file may have changed since this worker has read it, so it is read once more
        self._backoff = Backoff(*retry_seconds)
        self._retry_at = math.inf  # by the clock of the loop: a correct file could not be followed
        self._timer = Periodic(self.check, check_seconds, jitter=0.2)
        self._now: asyncio.Task[None] | None = None
        self._is_wanted = False  # a SIGHUP came
        self._reloading = asyncio.Lock()

    def start(self) -> None:
        self._timer.start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_now)

    async def stop(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        await self._timer.end()
        if self._now is not None:
            await asyncio.wait([self._now])

    async def check(self) -> None:
        """Reload if the files have changed, or if an environment that could not start is to be tried again."""
        async with self._reloading:
            is_due = asyncio.get_running_loop().time() >= self._retry_at
            if is_due or signature(self._files) != self._seen:
                await self._reload()

    def _reload_now(self) -> None:
        self._is_wanted = True
        if self._now is None or self._now.done():
            self._now = asyncio.create_task(self._reload_while_wanted())

    async def _reload_while_wanted(self) -> None:
        while self._is_wanted:
            async with self._reloading:
                self._is_wanted = False
                await self._reload()

    async def _reload(self) -> None:
        """Read the file. The signature is older than the content, so that no change is missed."""
        self._files = await asyncio.to_thread(files_of, self._config)
        self._seen = signature(self._files)
        try:
            await self._serving.change(await asyncio.to_thread(environments_of, self._config))
        except ConfigError as error:
            self.error, self._retry_at = str(error), math.inf
            _log_problems(error.problems)
        except GatewayError as error:
            self.error, self._retry_at = str(error), asyncio.get_running_loop().time() + self._backoff.next()
            _log_problems([f"{error}; retrying"])
        else:
            self.error, self._retry_at = None, math.inf
            self._backoff.reset()


def _log_problems(problems: Sequence[str]) -> None:
    for problem in problems:
        extra = once(problem)
        logger.error("the changed environments were rejected, the old ones remain in use: %s", problem, extra=extra)
