"""The thread of the store gets the interpreter's lock soon while the loop is busy."""

import asyncio
import sys
import time

from tornado_gateway.process.worker import BUSY_SWITCH_SECONDS, LATE_SECONDS, LockSwitching

SECONDS = 60.0  # for anything that is bound to happen


async def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_thread_waits_less_for_the_lock_while_the_loop_is_late():
    """Each statement of a group of events waited 5 ms under attack."""
    calm = sys.getswitchinterval()
    LockSwitching().start()

    def is_short_after_work():
        time.sleep(2 * LATE_SECONDS)
        return sys.getswitchinterval() < 2 * BUSY_SWITCH_SECONDS

    try:
        await until(is_short_after_work)
        await until(lambda: abs(sys.getswitchinterval() - calm) < BUSY_SWITCH_SECONDS)
    finally:
        sys.setswitchinterval(calm)
