"""Appends to the streams of all environments: those that wait at the same time share one script and one round trip.

An environment among many has few events in a moment. If each of them appended by itself, Redis and this process would
execute nearly as many scripts as there are requests; together they need as few as one environment with the same load.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tornado_gateway.errors import StoreError
from tornado_gateway.store.redis.lua import APPEND, Value
from tornado_gateway.store.redis.replies import ForbiddenError, store_error, unwrapped

ROUND_APPENDS = 64  # in one script: Redis executes nothing else meanwhile
ROUND_BYTES = 1024 * 1024  # so that a large append delays few others

Run = Callable[..., Awaitable[Any]]  # of a link


@dataclass(slots=True)
class _Append:
    keys: Sequence[str]
    values: Sequence[Value]
    size: int
    seconds: float
    ends_at: float  # by the clock of the loop
    reply: asyncio.Future[Any]


class Appends:
    """The appends of one link, one round after the other. `run` runs a script of the Redis that has this `name`.

    Each append succeeds or fails by itself, unless Redis does not reply at all. A round ends at the latest when no
    caller waits for it any more.
    """

    def __init__(self, run: Run, name: str) -> None:
        self._run = run
        self._name = name
        self._waiting: deque[_Append] = deque()
        self._rounds: asyncio.Task[None] | None = None

    async def add(self, keys: Sequence[str], values: Sequence[Value], size: int, seconds: float) -> Any:
        """Return the reply of `append.lua` to these arguments of one namespace, with `size` bytes of events.

        Raise StoreError. The caller waits for `seconds`.
        """
        loop = asyncio.get_running_loop()
        append = _Append(keys, values, size, seconds, loop.time() + seconds, loop.create_future())
        self._waiting.append(append)
        if self._rounds is None:
            self._rounds = asyncio.create_task(self._run_rounds())
        return await append.reply

    async def _run_rounds(self) -> None:
        try:
            while appends := self._next_round():
                await self._exchange(appends)
        finally:
            self._rounds = None

    def _next_round(self) -> list[_Append]:
        """Take the appends that have waited longest, without those whose callers were cancelled."""
        taken: list[_Append] = []
        size = 0
        while self._waiting and len(taken) < ROUND_APPENDS:
            append = self._waiting[0]
            if taken and size + append.size > ROUND_BYTES:
                break
            self._waiting.popleft()
            if not append.reply.done():
                taken.append(append)
                size += append.size
        return taken

    async def _exchange(self, appends: Sequence[_Append]) -> None:
        replies: Sequence[Any]
        try:
            async with asyncio.timeout_at(max([append.ends_at for append in appends])):
                replies = await self._replies(appends)
        except TimeoutError:
            replies = [StoreError(f"{self._name}: no response within {append.seconds:g} s") for append in appends]
        except StoreError as error:
            replies = [type(error)(str(error)) for _ in appends]
        for append, reply in zip(appends, replies, strict=True):
            if append.reply.done():
                continue
            if isinstance(reply, Exception):
                append.reply.set_exception(store_error(self._name, reply))
            else:
                append.reply.set_result(reply)

    async def _replies(self, appends: Sequence[_Append]) -> Sequence[Any]:
        keys = [key for append in appends for key in append.keys]
        values = [value for append in appends for value in (len(append.values), *append.values)]
        try:
            return [unwrapped(reply) for reply in await self._run(APPEND, keys, 0, *values)]
        except ForbiddenError as error:  # perhaps for the keys of some of them only. Redis has executed nothing
            if len(appends) == 1:
                return [error]
        return [(await self._replies([append]))[0] for append in appends]
