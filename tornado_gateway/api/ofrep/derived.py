"""Values that are made from settings when they are first needed, and bounded memories of them."""

from collections.abc import Callable
from typing import Generic, TypeVar

from tornado_gateway import core
from tornado_gateway.environments.registry import Environments

T = TypeVar("T")

ENTRY_BYTES = 512  # of the objects of one value, beside its bytes


class Derived(Generic[T]):
    """One value for the settings of each environment, made by `make`."""

    def __init__(self, environments: Environments, make: Callable[[core.Settings], T]) -> None:
        self._environments = environments
        self._make = make
        self._values: dict[core.Settings, T] = {}
        self.known: Callable[[core.Settings], T | None] = self._values.get

    def of(self, settings: core.Settings) -> T:
        value = self.known(settings)
        return self._add(settings) if value is None else value

    def _add(self, settings: core.Settings) -> T:
        """Make the value of new settings. Drop those of settings that no environment has any more."""
        snapshots = [environment.mirror.current for environment in self._environments.all]
        current = {snapshot.settings for snapshot in snapshots if snapshot is not None}
        for former in self._values.keys() - current:
            del self._values[former]
        value = self._values[settings] = self._make(settings)
        return value


class Remembered(Generic[T]):
    """Values by key, until they have more than `max_bytes` together; then all are forgotten.

    Each value counts `entry_bytes` more than its size, so that many small ones are bounded, too.
    """

    def __init__(self, max_bytes: int, entry_bytes: int = ENTRY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entry_bytes = entry_bytes
        self._size = 0
        self._values: dict[object, T] = {}
        self.get: Callable[[object], T | None] = self._values.get

    def add(self, key: object, value: T, size: int) -> T:
        """Remember a value of `size` bytes, and return it."""
        size += self._entry_bytes
        self._size += size
        if self._size > self._max_bytes:
            self._values.clear()
            self._size = size
        self._values[key] = value
        return value
