"""Values that are made from the settings of an environment when they are first needed, and bounded memories of them."""

from collections.abc import Callable
from typing import Generic, TypeVar

from tornado_gateway import core
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.registry import Environments

T = TypeVar("T")

ENTRY_BYTES = 512  # of the objects of one value, beside its bytes


class Derived(Generic[T]):
    """One value for each environment, made again by `make` when its settings have changed."""

    def __init__(self, environments: Environments, make: Callable[[core.Settings], T]) -> None:
        self._environments = environments
        self._make = make
        self._version = environments.version
        self._values: dict[Environment, tuple[core.Settings, T]] = {}

    def of(self, environment: Environment, settings: core.Settings) -> T:
        known = self._values.get(environment)
        if known is None or known[0] is not settings:
            if self._version != self._environments.version:  # some environments may be gone
                self._version = self._environments.version
                self._values.clear()
            known = self._values[environment] = settings, self._make(settings)
        return known[1]


class Remembered(Generic[T]):
    """Values by key, until they have more than `max_bytes` together; then all are forgotten.

    Each value counts `entry_bytes` more than its size, so that many small ones are bounded, too.
    """

    def __init__(self, max_bytes: int, entry_bytes: int = ENTRY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entry_bytes = entry_bytes
        self._size = 0
        self._values: dict[object, T] = {}

    def get(self, key: object) -> T | None:
        return self._values.get(key)

    def add(self, key: object, value: T, size: int) -> T:
        """Remember a value of `size` bytes, and return it."""
        size += self._entry_bytes
        self._size += size
        if self._size > self._max_bytes:
            self._values.clear()
            self._size = size
        self._values[key] = value
        return value
