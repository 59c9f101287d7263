"""Regular callbacks that do not pause when the wall clock is set back."""

from tornado.ioloop import PeriodicCallback


class SteadyCallback(PeriodicCallback):
    """A PeriodicCallback for which a step of the wall clock changes at most one interval.

    Tornado plans each call by the wall clock. After the clock was set back by an hour, it would wait for an hour.
    """

    def _update_next(self, current_time: float) -> None:
        self._next_timeout = min(self._next_timeout, current_time)
        super()._update_next(current_time)
