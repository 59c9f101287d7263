"""Regular callbacks when the wall clock is set."""

import asyncio

from tornado_gateway.settings.timers import SteadyCallback


async def calls_after_step(seconds):
    """Count the calls after the clock seems to have been set: by then the planned time is that far off."""
    calls = []
    timer = SteadyCallback(lambda: calls.append(1), 20)
    timer.start()
    timer._next_timeout -= seconds
    async with asyncio.timeout(30):
        while len(calls) < 5:
            await asyncio.sleep(0.01)
    timer.stop()
    return len(calls)


async def test_a_clock_that_is_set_back_does_not_stop_the_calls():
    """Guarantee 7."""
    assert await calls_after_step(-3600) >= 5


async def test_a_clock_that_is_set_forward_does_not_stop_the_calls():
    assert await calls_after_step(3600) >= 5
