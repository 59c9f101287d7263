"""Pacing: computations rest, and memory is freed in portions."""

import asyncio
import gc
import weakref
from unittest.mock import patch

from tornado_gateway.core import never_yield
from tornado_gateway.settings import pacing
from tornado_gateway.settings.pacing import empty_gradually, release_gradually, throttled


def test_a_document_is_taken_apart_piece_by_piece():
    document = {"features": [{"id": 1}, {"id": 2}], "groups": {"1": {}}, "version": 1}
    left = []
    empty_gradually(document, lambda: left.append(len(document["features"])))
    assert left == [1, 0]
    empty_gradually(["no object"], never_yield)


def test_pauses_rest_only_after_some_work():
    with patch.object(pacing, "time") as time:
        time.monotonic.side_effect = [0.0, pacing.WORK_SECONDS / 2, pacing.WORK_SECONDS * 2, 1.0, 1.0]
        pause = throttled()
        pause()
        assert not time.sleep.called
        pause()
        time.sleep.assert_called_once_with(pacing.REST_SECONDS)
        pause()
        assert time.sleep.call_count == 1


class Owner:
    """Whoever holds the parts."""


async def test_parts_are_freed_in_portions_once_their_owner_is_gone(io_loop):
    owner = Owner()
    parts = [Owner() for _ in range(3 * pacing.PARTS_AT_ONCE)]
    alive = weakref.WeakSet(parts)
    counts = []
    gc.disable()
    try:
        task = asyncio.create_task(release_gradually(weakref.ref(owner), parts, pause_seconds=0.001))
        del parts
        await asyncio.sleep(0.02)
        assert len(alive) == 3 * pacing.PARTS_AT_ONCE
        del owner
        while not task.done():
            counts.append(len(alive))
            await asyncio.sleep(0)
    finally:
        gc.enable()
    assert set(counts) >= {2 * pacing.PARTS_AT_ONCE, pacing.PARTS_AT_ONCE}
    assert not alive
