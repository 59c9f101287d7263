"""Holding back responses until an event such as a group commit.

The queue of events opens or fails a gate; the connections whose responses wait for it hold it. Neither knows the other.
"""

import asyncio
from typing import Protocol


class Holder(Protocol):
    """An object that waits for a gate."""

    def flush(self) -> None:
        """Continue, because the gate is open."""


class Gate:
    """Holds back the responses of many requests, on many connections, until one event.

    `failure` is set before the gate opens if the event failed and the responses depend on it; `is_lost` if it failed.
    """

    __slots__ = ("_holders", "failure", "is_lost", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self.is_lost = False
        self.failure: Exception | None = None
        self._holders: list[Holder] = []

    def hold(self, holder: Holder) -> None:
        """Register a holder, which is called once when the gate opens."""
        self._holders.append(holder)

    def open(self) -> None:
        """Release all holders, each with one call. Later holders find the gate open."""
        if self.is_open:
            return
        self.is_open = True
        holders, self._holders = self._holders, []
        for holder in holders:
            holder.flush()

    def fail(self, error: Exception) -> None:
        """Release all holders, with an error that replaces each held response and later ones."""
        if not self.is_open:
            self.failure = error
            self.open()


class _Waiter:
    """A coroutine that waits for a gate."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def flush(self) -> None:
        if not self.opened.done():  # a cancelled request waits no longer
            self.opened.set_result(None)


async def has_happened(gate: Gate | None) -> bool:
    """Wait for a gate. Return whether its event happened; without a gate there is none that could fail."""
    if gate is None:
        return True
    if not gate.is_open:
        waiter = _Waiter()
        gate.hold(waiter)
        await waiter.opened
    return gate.failure is None and not gate.is_lost
