"""Recognise workers that hang: stopped, or in a computation that does not end. Used by `supervisor`."""

import os
import signal
import time
from collections.abc import Collection

from tornado_gateway.process.parent.worker_process import WorkerProcess
from tornado_gateway.telemetry.scoreboard import Scoreboard

CHECKS = 10  # per `silent_seconds`
TRACEBACK_SECONDS = 1.0  # time for a hung worker to write its stack before it is killed


class HangWatch:
    """Watches heartbeats on the scoreboard. A worker without one for `silent_seconds` gets a deadline to be killed."""

    def __init__(self, scoreboard: Scoreboard, silent_seconds: float) -> None:
        self.interval_seconds = silent_seconds / CHECKS  # interval for calls of `check`
        self._scoreboard = scoreboard
        self._silent_seconds = silent_seconds
        self._checked_at = time.monotonic()

    def check(self, processes: Collection[WorkerProcess]) -> None:
        """Ask workers that hang for their stack, and set the deadline at which they are killed."""
        now = time.monotonic()
        if now - self._checked_at > self._silent_seconds / 2:
            # This process was stopped or got no CPU time, perhaps like its workers. Their time starts again.
            for process in processes:
                process.watched_since = now
        self._checked_at = now
        for process in processes:
            if process.is_watched and self._is_silent(process, now):
                process.is_watched = False
                process.fault = f"did not respond for {self._silent_seconds:g} s"
                process.deadline = min(process.deadline, now + TRACEBACK_SECONDS)
                os.kill(process.pid, signal.SIGUSR1)

    def _is_silent(self, process: WorkerProcess, now: float) -> bool:
        last_progress = max(process.watched_since, self._scoreboard.last_beat(process.row))
        return now - last_progress > self._silent_seconds
