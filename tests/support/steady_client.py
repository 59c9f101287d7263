"""A well-behaved client in a process of its own: asks for a flag at a fixed rate and remembers how long each took.

    python tests/support/steady_client.py PORT       ends at the end of its standard input, and prints the samples
    python tests/support/steady_client.py idle       the same without requests: how late an idle process wakes up

Times are of the monotonic clock, which all processes of a machine share. Each request is timed from the moment when it
was meant to leave, so that a pause counts for all requests that were due in it.
"""

import asyncio
import gc
import json
import sys
import time
from typing import NamedTuple

RATE = 50  # requests per second
CONNECTIONS = 64
BODY = b'{"featureKey":"new-checkout","userId":"%b","customVariables":{"plan":"gold"}}'
REQUEST = b"POST /server-side/getFlag HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n%b"
PATIENCE_SECONDS = 30.0


class Sample(NamedTuple):
    due: float
    seconds: float
    late: float  # the share of this process: it began later than the request was due
    error: str


class Client:
    def __init__(self, port: int, connections: int = CONNECTIONS) -> None:
        self._port = port
        self._idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None] = asyncio.Queue()
        for _ in range(connections):
            self._idle.put_nowait(None)

    async def ask(self, number: int) -> str:
        """Ask for a flag over an idle connection. Return what was wrong with the response, if anything."""
        connection = await self._idle.get()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = connection or await asyncio.open_connection("127.0.0.1", self._port)
                body = BODY % f"steady-{number}".encode()
                writer.write(REQUEST % (len(body), body))
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self._idle.put_nowait(None)
            return repr(error)
        self._idle.put_nowait(None if b"connection: close" in head.lower() else (reader, writer))
        return "" if b" 200 " in head and b'"isEnabled":true' in body else (head + body)[:200].decode()


async def tick(client: Client | None, number: int, due: float, samples: list[Sample]) -> None:
    late = time.monotonic() - due
    error = "" if client is None else await client.ask(number)
    samples.append(Sample(due, time.monotonic() - due, late, error))


async def run(client: Client | None) -> list[Sample]:
    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.read)
    samples: list[Sample] = []
    started, tasks = time.monotonic(), set()
    number = 0
    while not ended.done():
        due = started + number / RATE
        await asyncio.sleep(due - time.monotonic())
        task = asyncio.create_task(tick(client, number, due, samples))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    await asyncio.gather(*tasks)
    return samples


def main(target: str) -> None:
    gc.freeze()
    json.dump(asyncio.run(run(None if target == "idle" else Client(int(target)))), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
