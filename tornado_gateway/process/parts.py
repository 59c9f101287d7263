"""The parts of a worker: started in the order of a list, stopped in the reverse order."""

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import NamedTuple

from tornado_gateway.errors import GatewayError, StartError

Action = Callable[[], Awaitable[object] | object]  # a function or a coroutine function


class Part(NamedTuple):
    """A part of a worker. `stop` also cleans up after a `start` that failed.

    `remedy` is the advice for operators if it cannot start.
    """

    name: str
    start: Action
    stop: Action
    remedy: str = ""


async def enter(parts: Sequence[Part], entered: AsyncExitStack) -> None:
    """Start the parts in order. Leaving `entered` stops those that were started, the last one first.

    Raise StartError with cause and remedy if a part cannot start.
    """
    for part in parts:
        entered.push_async_callback(_call, part.stop)
        with explaining(part.remedy):
            await _call(part.start)


@contextmanager
def explaining(remedy: str) -> Iterator[None]:
    """Add the remedy to an error that prevents the start."""
    try:
        yield
    except (GatewayError, OSError) as error:
        raise StartError(f"{str(error).rstrip('.')}. {remedy}".rstrip()) from error


async def _call(action: Action) -> None:
    result = action()
    if inspect.isawaitable(result):
        await result
