"""The connection of this process to Redis: pipelines, their deadline, retries, and messages.

All environments use one link. In a Cluster each has its own, because its keys are on a node of their own.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from redis import exceptions as errors
from redis.asyncio.client import PubSub

from tornado_gateway.backoff import Backoff
from tornado_gateway.errors import StoreError
from tornado_gateway.store.redis.connections import Connections
from tornado_gateway.store.redis.lua import Command, Script, Value
from tornado_gateway.store.redis.options import RedisOptions
from tornado_gateway.store.redis.replies import (
    MASTER_IS_ELSEWHERE,
    LateError,
    UnknownScriptError,
    store_error,
)
from tornado_gateway.store.redis.topology import HEALTH_CHECK_SECONDS, Route, route_to
from tornado_gateway.tasks import TimeLimit, end_tasks

logger = logging.getLogger(__name__)

T = TypeVar("T")

PIPELINES = 4  # pipelines in flight; later commands share the next one
# That a patient command waits for others, whose round trip it shares. Longer waits would make each reading of the store
# look slow, so that it would be read more rarely (`telemetry/waiting.py`).
PATIENT_SECONDS = 0.02
RETRY_FIRST_SECONDS = 0.1
RETRY_LONGEST_SECONDS = 2.0
RETRY_JITTER = 0.5
SCAN_COUNT = 1000  # keys that Redis checks for one reply
ON_TIME_SHARE = 0.9  # of the time-out; a script that starts later is rejected, because its caller gives up


def make_link(options: RedisOptions, namespace: str) -> "Link":
    return Link(route_to(options, prefix(namespace)), options.timeout_seconds)


class Links:
    """The links of this process, for any number of namespaces. `shared` is the one for all, None in a Cluster."""

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        # Only a Cluster has slots, on which the route depends.
        self.shared = None if options.is_cluster else make_link(options, "")

    def of(self, namespace: str) -> "Link":
        return self.shared or make_link(self._options, namespace)


def prefix(namespace: str) -> str:
    """Return the beginning of all keys of a namespace. The braces make it the hash tag."""
    return f"{{fme:{namespace}}}"


_Call = tuple[Command, asyncio.Future[Any]]


class Link:
    """The connection of this process to Redis: a few sockets, and pipelines on them.

    Commands of the same turn of the loop share one round trip. Regular work of many environments is `patient`: it waits
    for up to PATIENT_SECONDS to share that of others, because a round trip costs far more than a command in it.
    A command is sent again only if Redis certainly has not executed it. After a connection has failed, commands fail at
    once, except for one after each backoff, which tries again.
    """

    def __init__(self, route: Route, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self._route = route
        self._users = 0
        self._connections: Connections | None = None
        self._loop: asyncio.AbstractEventLoop  # since `open`: to ask for the running one is a system call each time
        self._pending: list[_Call] = []
        self._patient: list[_Call] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._failure: str | None = None
        self._backoff = Backoff(RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS, RETRY_JITTER)
        self._retry_at = 0.0
        self._messages = _Messages()
        self.scripts = TimelyScripts(self)

    @property
    def name(self) -> str:
        return self._route.name

    @property
    def is_closed(self) -> bool:
        return self._users == 0

    def open(self) -> None:
        """Open the connection, or count one more user of it. Each `open` needs one `close`."""
        if self._connections is None:
            self._connections = Connections(self._route.client())
            self._loop = asyncio.get_running_loop()
            self._forget_failure()
        self._users += 1

    async def close(self) -> None:
        if self._users == 0:
            return
        self._users -= 1
        if self._users or self._connections is None:
            return
        connections, self._connections = self._connections, None
        await self._messages.stop()
        while self._in_flight:
            await asyncio.wait(self._in_flight)
        await connections.close()
        await self._route.close()

    async def call(self, *command: Value, patient: bool = False) -> Any:
        """Send one command. Return its reply."""
        return await self._reply_to(command, patient)

    async def run(self, script: Script, keys: Sequence[str], *args: Value, patient: bool = False) -> Any:
        """Run a script. Return its reply."""
        try:
            return await self._reply_to(("EVALSHA", script.sha, len(keys), *keys, *args), patient)
        except UnknownScriptError:
            return await self._reply_to(("EVAL", script.text, len(keys), *keys, *args))

    async def listen(self, channel: str, notify: Callable[[], None]) -> None:
        """Call `notify` for each message, and when one may have been missed. Run until cancelled."""
        if self._connections is not None:
            await self._messages.listen(self._connections, channel, notify, self.timeout_seconds)

    def _reply_to(self, command: Command, patient: bool = False) -> asyncio.Future[Any]:
        """Send a command in the next pipeline. The future has its reply."""
        if self.is_closed:
            raise StoreError("the store is closed")
        reply = self._loop.create_future()
        if patient:
            if not self._patient:
                self._loop.call_later(PATIENT_SECONDS, self._send_patient)
            self._patient.append((command, reply))
        else:
            if not self._pending:
                self._loop.call_soon(self._send)
            self._pending.append((command, reply))
        return reply

    def _send_patient(self) -> None:
        self._pending += self._patient
        self._patient = []
        self._send()

    def _send(self) -> None:
        """Send the pending commands, unless all pipelines are busy: the first one that ends sends them then."""
        if not self._pending or len(self._in_flight) >= PIPELINES:
            return
        calls = self._pending + self._patient
        self._pending, self._patient = [], []
        task = self._loop.create_task(self._exchange(calls))
        self._in_flight.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._send()

    async def _exchange(self, calls: Sequence[_Call]) -> None:
        replies: Sequence[Any]
        try:
            replies = await self._replies([command for command, _ in calls])
        except StoreError as error:
            replies = [StoreError(str(error)) for _ in calls]
        for (_, future), reply in zip(calls, replies, strict=True):
            if future.done():  # the caller has been cancelled
                continue
            if isinstance(reply, Exception):
                future.set_exception(store_error(self._route.name, reply))
            else:
                future.set_result(reply)

    async def _replies(self, commands: Sequence[Command]) -> list[Any]:
        """Return one reply or error for each command. Raise StoreError if there are none."""
        if self._failure is not None:
            now = time.monotonic()
            if now < self._retry_at:
                raise StoreError(self._failure)
            self._retry_at = now + self.timeout_seconds  # other commands fail at once while this one tries
        if self._connections is None:
            raise StoreError("the store is closed")
        try:
            with TimeLimit(self.timeout_seconds):
                replies, failed = await self._connections.exchange(commands)
                if failed:
                    await self._find_node(self._connections, commands, replies)
        except TimeoutError:
            raise await self._failed(f"{self._route.name}: no response within {self.timeout_seconds:g} s") from None
        except (errors.RedisError, OSError) as error:
            raise await self._failed(str(store_error(self._route.name, error))) from error
        if self._failure is not None:
            self._forget_failure()
        return replies

    async def _find_node(self, connections: Connections, commands: Sequence[Command], replies: list[Any]) -> None:
        """Find the node again if these errors of commands say so. Send those that it would have executed to it."""
        moved = [i for i, reply in enumerate(replies) if isinstance(reply, errors.MovedError)]
        if moved:  # Redis did not execute these
            await self._forget_connections()
            others, _ = await connections.exchange([commands[i] for i in moved])
            for i, reply in zip(moved, others, strict=True):
                replies[i] = reply
        if any(isinstance(reply, MASTER_IS_ELSEWHERE) for reply in replies):
            await self._forget_connections()

    async def _failed(self, reason: str) -> StoreError:
        """Note the reason, and the time of the next attempt. Return the error to raise."""
        self._failure = reason
        self._retry_at = time.monotonic() + self._backoff.next()
        await self._forget_connections()
        return StoreError(reason)

    def _forget_failure(self) -> None:
        self._failure = None
        self._backoff.reset()

    async def _forget_connections(self) -> None:
        """Connect again for the next commands: idle connections are probably broken too, or end at the wrong node."""
        self._route.forget()
        if self._connections is not None:
            await self._connections.disconnect()


class _Messages:
    """The messages of all channels, on one connection."""

    def __init__(self) -> None:
        self._listeners: dict[str, Callable[[], None]] = {}
        self._subscription: PubSub | None = None
        self._task: asyncio.Task[None] | None = None

    async def listen(
        self, connections: Connections, channel: str, notify: Callable[[], None], timeout_seconds: float
    ) -> None:
        self._listeners[channel] = notify
        try:
            if self._task is None:
                self._task = asyncio.create_task(self._run(connections, timeout_seconds))
            elif self._subscription is not None:
                await self._change(self._subscription.subscribe(channel))
                notify()
            await asyncio.get_running_loop().create_future()  # until cancelled
        finally:
            del self._listeners[channel]
            if self._subscription is not None and self._listeners:
                await self._change(self._subscription.unsubscribe(channel))

    async def stop(self) -> None:
        await end_tasks(self._task)
        self._task = None

    async def _change(self, change: Awaitable[None]) -> None:
        with suppress(errors.RedisError, OSError):  # if the connection fails, the next one has the right channels
            await change

    async def _run(self, connections: Connections, timeout_seconds: float) -> None:
        backoff = Backoff(RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS, RETRY_JITTER)
        while True:
            while not self._listeners:
                await asyncio.sleep(RETRY_LONGEST_SECONDS)
            try:
                async with connections.subscription() as subscription:
                    async with asyncio.timeout(timeout_seconds):
                        await subscription.subscribe(*self._listeners)
                    self._subscription = subscription
                    for notify in list(self._listeners.values()):
                        notify()
                    backoff.reset()
                    while True:
                        self._pass_on(await subscription.get_message(True, HEALTH_CHECK_SECONDS))
            except (errors.RedisError, OSError) as error:
                logger.debug("listening for changed documents failed: %s", error)
            finally:
                self._subscription = None
            await asyncio.sleep(backoff.next())

    def _pass_on(self, message: dict[str, Any] | None) -> None:
        notify = self._listeners.get(message["channel"].decode()) if message is not None else None
        if notify is not None:
            notify()


async def count_living(link: Link, namespace: str) -> int:
    """Return the number of workers that use a namespace."""
    seconds, microseconds = await link.call("TIME")
    now_ms = int(seconds) * 1000 + int(microseconds) // 1000
    return int(await link.call("ZCOUNT", f"{prefix(namespace)}:consumers", now_ms, "+inf"))


async def delete_namespace(link: Link, namespace: str) -> int:
    """Delete all keys of a namespace. Return their number."""
    deleted, cursor = 0, b"0"
    while True:
        cursor, keys = await link.call("SCAN", cursor, "MATCH", f"{prefix(namespace)}:*", "COUNT", SCAN_COUNT)
        if keys:
            deleted += int(await link.call("UNLINK", *keys))
        if cursor == b"0":
            return deleted


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Await work on the path of a decision, which must not wait for a Redis that hangs. Raise StoreError."""
    try:
        with TimeLimit(seconds):
            return await work
    except TimeoutError:
        raise StoreError(f"Redis: no response within {seconds:g} s") from None


class TimelyScripts:
    """Runs scripts that Redis rejects if they reach it after their caller has given up."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._server_clock: float | None = None  # the server's milliseconds at our monotonic 0

    async def run(
        self, script: Script, keys: Sequence[str], *args: Value, seconds: float | None = None, patient: bool = False
    ) -> Any:
        """Return the reply of a script that begins with `on_time`. The caller waits for `seconds`."""
        limit = min(self._link.timeout_seconds, seconds or math.inf)
        try:
            return await self._link.run(script, keys, self._last_moment(limit), *args, patient=patient)
        except LateError:
            self._forget_clock()
            raise

    def _last_moment(self, seconds: float) -> int:
        """Return the last moment at which a script may begin, by the server's clock; 0 if that is not known."""
        if self._server_clock is None:
            return 0
        return int(self._server_clock + (time.monotonic() + seconds * ON_TIME_SHARE) * 1000)

    def _forget_clock(self) -> None:
        """Forget the server's clock, which may have been set. The next heartbeat reads it."""
        self._server_clock = None

    def note_clock(self, server_ms: int, asked_at: float) -> None:
        """Keep a reading of the server's clock. Latency makes it look late, so the quick or the later one is right."""
        answered_at = time.monotonic()
        clock = server_ms - answered_at * 1000
        was_quick = answered_at - asked_at < self._link.timeout_seconds * 0.05
        if self._server_clock is None or was_quick or clock > self._server_clock:
            self._server_clock = clock
