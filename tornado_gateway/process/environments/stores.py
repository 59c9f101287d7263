"""The stores of one worker: one for each environment, and the state that all of them share.

Without ENVIRONMENTS_FILE both are the same. With it, each environment has a directory of its own below DATA_DIR, so
that neither a damaged file nor a full log concerns another one, and a namespace of its own in Redis.
"""

import logging
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tornado_gateway.config import Config
from tornado_gateway.process.redis_options import redis_options
from tornado_gateway.settings.stored import document_name
from tornado_gateway.store.interfaces import StateStore, Store
from tornado_gateway.store.sqlite.events import FRESH_BYTES, LEAST_WAL_BYTES, WAL_BYTES, SqliteEvents
from tornado_gateway.store.sqlite.state import SqliteState
from tornado_gateway.tasks import pace_of

if TYPE_CHECKING:
    from tornado_gateway.store.redis.link import Links
    from tornado_gateway.store.spill import SpillingAppends

logger = logging.getLogger(__name__)

STANDBY_PACE = 4  # of an event log that is used only while Redis fails
COMMON_NAMESPACE = "common"  # no account has this name
DIRECTORY = "environments"  # in DATA_DIR


def data_dir_of(config: Config) -> Path:
    """Return the directory of an environment: DATA_DIR or, with ENVIRONMENTS_FILE, one below it."""
    if config.environment_name is None:
        return config.data_dir
    return config.data_dir / DIRECTORY / f"{config.account_id}-{config.environment_name}"


def settings_name(config: Config) -> str:
    """Return the name of the settings of an environment in its store."""
    return document_name(config.account.id or "file", config.environment_name or config.account.sdk_key, "server-1")


def report_unknown(config: Config, served: Collection[Path]) -> None:
    """Log the directories of environments that are not in the file: their events are kept, but not delivered."""
    directory = config.data_dir / DIRECTORY
    for path in sorted(directory.glob("*-*/events-*.db")):
        if path.parent not in served:
            logger.warning("%s is of no environment in the file, its events are kept but not delivered", path)


class Stores:
    """Makes the stores of a worker. `owner` is its name among all workers."""

    def __init__(self, config: Config, owner: str) -> None:
        self._config = config
        self._owner = owner

    @cached_property
    def _links(self) -> "Links":
        from tornado_gateway.store.redis.link import Links  # not needed without Redis

        return Links(redis_options(self._config))

    @cached_property
    def together(self) -> "SpillingAppends | None":
        """The appends of all environments; None if each store has a connection of its own."""
        if not self._config.uses_redis or self._links.shared is None:
            return None
        from tornado_gateway.store.redis.events import Appends
        from tornado_gateway.store.spill import SpillingAppends

        return SpillingAppends(Appends(self._links.shared))

    def of(self, config: Config, number: int = 1) -> Store:
        """Return the embedded store; with Redis, that one, and the embedded event log for the time when Redis fails.

        It is one of so many, which share the memory for events, and do their regular work more rarely. Their WALs are
        smaller.
        """
        directory, pace = data_dir_of(config), pace_of(number)
        local = SqliteEvents(
            directory,
            config.store_sync,
            fresh_bytes=FRESH_BYTES // number,
            wal_bytes=max(WAL_BYTES // number, LEAST_WAL_BYTES),
            # With Redis a machine shows one number of dead events: those in Redis, and all in its directory.
            counts_all_letters=config.uses_redis,
            pace=pace * STANDBY_PACE if config.uses_redis else pace,
        )
        if config.uses_redis:
            return self._with_redis(config, local, pace)
        state_pace = max(1, pace // 2)  # until all workers know new settings, a visitor may get either
        return Store(local, SqliteState(directory, config.store_sync, config.namespace, pace=state_pace))

    def _with_redis(self, config: Config, local: SqliteEvents, pace: int) -> Store:
        from tornado_gateway.store.redis.events import open_redis
        from tornado_gateway.store.redis.takeover import take_over
        from tornado_gateway.store.spill import SpillingEvents

        redis = open_redis(redis_options(config), config.namespace, self._owner, links=self._links, pace=pace)
        patience_seconds = 2 * config.socket_timeout_seconds  # requests to Redis have timed out by then
        events = SpillingEvents(redis.events, local, patience_seconds=patience_seconds, together=self.together)
        if config.environment_name is not None:  # version 0.1 had no such file
            return Store(events, redis.state)
        former = config.former_namespace
        return Store(events, redis.state, take_over(redis_options(config), former, config.namespace, self._owner))

    def common_state(self) -> StateStore:
        """Return the state that belongs to no environment of the file: sessions, and leases of the machine."""
        config = self._config
        if not config.uses_redis:
            return SqliteState(config.data_dir / DIRECTORY, config.store_sync, COMMON_NAMESPACE)
        from tornado_gateway.store.redis.state import RedisState

        return RedisState(self._links.of(COMMON_NAMESPACE), COMMON_NAMESPACE)
