"""Connections to Redis, used without the pipelines of redis-py, which cost more than the round trip itself."""

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
from redis import exceptions as errors
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection

from tornado_gateway.store.redis.lua import Command
from tornado_gateway.store.redis.replies import unwrapped


class Connections:
    """The connections of one client. They are kept for the next use, because its pool keeps many books."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._pool = client.connection_pool
        self._kept: list[AbstractConnection] = []

    async def exchange(self, commands: Sequence[Command]) -> tuple[list[Any], bool]:
        """Send the commands in one round trip. Return the reply to each, or its error, and whether there are errors.

        Raise RedisError or OSError if there are none. A connection that has failed is connected again by its next use.
        """
        connection = self._kept.pop() if self._kept else self._new()
        try:
            await self._pool.ensure_connection(connection)
            packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
            await connection.send_packed_command(packed)
            replies: list[Any] = []
            failed = False
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except errors.ResponseError as error:
                    replies.append(unwrapped(error))
                    failed = True
        finally:
            self._kept.append(connection)
        return replies, failed

    def _new(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.get_available_connection()  # type: ignore[no-untyped-call]
        connection.health_check_interval = 0  # a command fails in time by itself
        return connection

    async def disconnect(self) -> None:
        """Disconnect those that are not in use."""
        kept, self._kept = self._kept, []
        await asyncio.gather(*(connection.disconnect() for connection in kept), return_exceptions=True)
        self._kept += kept

    def subscription(self) -> PubSub:
        return self._client.pubsub()

    async def close(self) -> None:
        await self._client.aclose()
