"""The SDK keys of one environment: the current one and, while it is being replaced, the previous ones."""

import time
from collections.abc import Sequence

from tornado_gateway.errors import UpstreamError

KEY_STATUSES = (401, 403, 404)  # of responses to requests whose key VWO does not know (any more)
REJECTED_SECONDS = 300.0  # until a rejected key is tried again, in a gateway with several environments


class Keys:
    """The keys in the order in which they are tried. One that was rejected is left out for `rejected_seconds`."""

    def __init__(self, keys: Sequence[str], rejected_seconds: float = 0.0) -> None:
        self.all = tuple(keys)
        self._rejected_seconds = rejected_seconds
        self._rejected: dict[str, tuple[float, UpstreamError]] = {}  # time and error of each rejection

    @property
    def current(self) -> str:
        return self.all[0]

    def replace(self, keys: Sequence[str]) -> None:
        """Use these keys from now on, and try each of them."""
        self.all = tuple(keys)
        self._rejected = {}

    def to_try(self, *, rejected_ones: bool = False) -> list[str]:
        """Return the keys to try now. Raise the error of the first one if all of them were rejected recently."""
        now = time.monotonic()
        keys = [key for key in self.all if rejected_ones or not self._is_rejected(key, now)]
        if not keys:
            raise self._rejected[self.current][1]
        return keys

    def reject(self, key: str, error: UpstreamError) -> None:
        self._rejected[key] = time.monotonic(), error

    def accept(self, key: str) -> None:
        self._rejected.pop(key, None)

    def _is_rejected(self, key: str, now: float) -> bool:
        return key in self._rejected and now - self._rejected[key][0] < self._rejected_seconds
