"""Clients that send events of all kinds, each with a serial number, and connect again after every failure."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from ledger import expected_events, identity, visitor_requests
from load import Exchange, Load

from chaos.verdict import Key, Sending

POISON_EVERY = 350  # requests; a multiple of KINDS
KINDS = 7
BATCH = 5
PATIENCE_SECONDS = 30.0
RECONNECT_SECONDS = 0.2


def requests_of(run: str, *, poison: bool = False) -> Callable[[int], tuple[str, dict[str, Any]]]:
    """Every request is of another visitor. With `poison`, one of POISON_EVERY holds an event that upstream rejects."""
    decisions = visitor_requests(run)

    def make(number: int) -> tuple[str, dict[str, Any]]:
        if number % KINDS == 5:
            return "/events/t?en=chaos", _event(run, number, poison=poison and number % POISON_EVERY == 5)
        if number % KINDS == 6:
            return "/server-side/batch-events-v2", {"ev": [_event(run, f"{number}-{at}") for at in range(BATCH)]}
        return decisions(number)

    return make


def _event(run: str, serial: object, *, poison: bool = False) -> dict[str, Any]:
    props = {"id": serial, "text": "x" * 200, **({"poison": True} if poison else {})}
    return {"d": {"visId": f"{run}-{serial}", "event": {"name": "chaos", "props": props}}}


def is_poisoned(event: dict[str, Any]) -> bool:
    return "poison" in event["d"]["event"]["props"]


def events_of(exchange: Exchange) -> list[Key]:
    fields = exchange.fields
    if exchange.path.startswith("/events/t"):
        return [identity(fields)]
    if "ev" in fields:
        return [identity(event) for event in fields["ev"]]
    return expected_events(exchange)


def sendings(exchanges: Iterable[Exchange]) -> dict[Key, Sending]:
    found: dict[Key, Sending] = {}
    for exchange in exchanges:
        acknowledged = exchange.sent_at + exchange.seconds if exchange.status == 200 else None
        found.update(dict.fromkeys(events_of(exchange), Sending(exchange.sent_at, acknowledged)))
    return found


class Clients(Load):
    """Keep-alive clients of one gateway."""

    async def _connection(self) -> None:
        while not self.stopping and (number := next(self._numbers, None)) is not None:
            exchange = Exchange(*self.make(number))
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except (OSError, TimeoutError):
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            try:
                with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                    await self._exchanges(exchange, reader, writer)
            finally:
                writer.close()

    async def _exchanges(self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send one request after the other on this connection, until it ends."""
        while True:
            self.exchanges.append(exchange)
            async with asyncio.timeout(PATIENCE_SECONDS):
                closes = await self._exchange(exchange, reader, writer)
            self.answered += 1
            await asyncio.sleep(self.pause_seconds)
            if closes or self.stopping or (number := next(self._numbers, None)) is None:
                return
            exchange = Exchange(*self.make(number))


class Newcomers(Clients):
    """Clients with a connection for each request, so that each worker gets some of them, however few they are."""

    async def _exchange(self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await super()._exchange(exchange, reader, writer)
        return True
