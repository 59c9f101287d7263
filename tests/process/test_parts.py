"""The list of parts: started in order, stopped in the reverse order, also after a start that fails."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from process import SAMPLE_SETTINGS

from tornado_gateway.config import Config
from tornado_gateway.errors import StartError, StoreError
from tornado_gateway.process.assembly import Assembly
from tornado_gateway.process.parent.sockets import bind
from tornado_gateway.process.parent.worker_process import WorkerSlot
from tornado_gateway.process.parts import Part, enter
from tornado_gateway.telemetry.scoreboard import Scoreboard


class Recorded:
    """Parts that note their starts and stops. Those in `broken` raise this error."""

    def __init__(self, **broken):
        self.calls = []
        self._broken = broken

    def part(self, name, remedy=""):
        async def start():
            self.note(f"start {name}")

        return Part(name, start, lambda: self.note(f"stop {name}"), remedy)

    def note(self, call):
        self.calls.append(call)
        if error := self._broken.get(call.replace(" ", "_")):
            raise error


async def enter_and_leave(parts):
    async with AsyncExitStack() as entered:
        await enter(parts, entered)


def test_the_last_part_stops_first():
    recorded = Recorded()
    asyncio.run(enter_and_leave([recorded.part("a"), recorded.part("b")]))
    assert recorded.calls == ["start a", "start b", "stop b", "stop a"]


def test_a_start_that_fails_stops_its_own_part_and_the_earlier_ones():
    recorded = Recorded(start_b=StoreError("the disk is full."))
    with pytest.raises(StartError, match=r"^the disk is full\. Free some space\.$"):
        asyncio.run(enter_and_leave([recorded.part(name, "Free some space.") for name in "abc"]))
    assert recorded.calls == ["start a", "start b", "stop b", "stop a"]


def test_a_part_without_a_remedy_names_the_cause_only():
    recorded = Recorded(start_a=OSError("no such device"))
    with pytest.raises(StartError, match=r"^no such device\.$"):
        asyncio.run(enter_and_leave([recorded.part("a")]))


def test_a_stop_that_fails_does_not_keep_other_parts_from_stopping():
    recorded = Recorded(stop_b=RuntimeError("a fault of ours"))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        asyncio.run(enter_and_leave([recorded.part(name) for name in "abc"]))
    assert recorded.calls[3:] == ["stop c", "stop b", "stop a"]


@pytest.mark.parametrize(
    ("options", "added"),
    [({}, []), ({"maxmind_license_key": "key", "maxmind_user_id": 1}, ["location download"])],
)
def test_the_order_of_a_worker(tmp_path, options, added):
    """Requests are finished first, then what they have left is delivered, and the store closes last."""
    config = Config(settings_file=SAMPLE_SETTINGS, data_dir=tmp_path, **options)

    async def names():
        with bind("127.0.0.1", 0) as sock:
            slot = WorkerSlot(0, 0, 1, Scoreboard(), sock, ready_pipe=-1)
            return [part.name for part in Assembly(config, slot).parts()]

    before, after = (
        ["publication", "connections", "store", "location", "location report"],
        [
            "problems",
            "experiments",
            "last count",
            "environment",
            "waiting",
            "adoption",
            "client tokens",
            "server",
            "streams",
        ],
    )
    assert asyncio.run(names()) == [*before, *added, *after, "lag measurement", "console"]
