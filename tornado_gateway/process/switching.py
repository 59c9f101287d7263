"""How long a thread of this worker waits until a busy loop hands over the interpreter's lock."""

import asyncio
import sys

CHECK_SECONDS = 0.05
LATE_SECONDS = 0.003  # more than a turn of the loop takes without an attack, however many requests there are
CALM_SECONDS = 1.0
BUSY_SWITCH_SECONDS = 0.0005


class LockSwitching:
    """Shortens the wait while the loop is late, and for a second after that.

    The thread of the store waits for the lock several times for each group of events, and responses wait for these. A
    busy loop keeps it for Python's default of 5 ms each time. More switches cost some of the maximum rate, so they are
    left out while turns of the loop are short.
    """

    def __init__(self) -> None:
        self._calm_switch_seconds = sys.getswitchinterval()
        self._calm_at = self._due = 0.0

    def start(self) -> None:
        """Check regularly, for as long as the loop runs."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + CHECK_SECONDS
        loop.call_later(CHECK_SECONDS, self._check)

    def _check(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._due > LATE_SECONDS:
            self._calm_at = now + CALM_SECONDS
        sys.setswitchinterval(BUSY_SWITCH_SECONDS if now < self._calm_at else self._calm_switch_seconds)
        self.start()
