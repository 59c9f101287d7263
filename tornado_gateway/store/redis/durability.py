"""Whether Redis keeps the events that it has acknowledged: its settings, and the detection of lost events."""

import os
from typing import Any

from tornado_gateway.errors import StoreError
from tornado_gateway.store.redis.link import Link

NO_EPOCH = b"-"
RISK_REMEDY = "Set `maxmemory-policy noeviction` and `appendonly yes` in redis.conf."


class Ledger:
    """The numbers of events that Redis holds, as of its last reply (see `ledger.lua`).

    An event is lost if Redis held it and no longer does: it was emptied, restarted without persistence, restored from
    an older copy, or has evicted keys. The number of several processes together can be off by the events that the
    others stored since the last reply to the one that notices the loss.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._epoch = NO_EPOCH
        self._epochs = (NO_EPOCH.decode(), _new_name())  # this one and the next, as text
        self._sequence = 0
        self._waiting = 0
        self._dead = 0

    def argument(self, held: int) -> str:
        """Return the last argument of the scripts. `held` events are in memory, and are delivered from there."""
        epoch, new_epoch = self._epochs
        waiting = self._waiting - held if self._waiting > held else 0
        return f"{epoch} {self._sequence} {waiting} {self._dead} {new_epoch}"

    def note(self, reply: list[Any]) -> None:
        epoch, sequence, waiting, dead, lost = reply
        self.lost += lost
        if epoch != self._epoch:
            if epoch == NO_EPOCH:
                return  # Redis has lost its numbers and is full or read-only: the loss is counted once it can be noted
            self._begin(epoch)
        elif sequence < self._sequence:
            return  # a reply that was overtaken by a later one
        self._sequence, self._waiting, self._dead = sequence, waiting, dead

    def _begin(self, epoch: bytes) -> None:
        name, new_epoch = epoch.decode(), self._epochs[1]
        self._epoch, self._epochs = epoch, (name, _new_name() if name == new_epoch else new_epoch)


def _new_name() -> str:
    return os.urandom(16).hex()


async def risks(link: Link) -> list[str]:
    """Return the settings with which Redis loses acknowledged events. Settings that cannot be read are left out."""
    found = []
    memory = await _info(link, "memory")
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy not in ("noeviction", "") and not policy.startswith("volatile-"):
        found.append(f"Redis can evict events (maxmemory-policy {policy})")
    persistence = await _info(link, "persistence")
    if persistence.get("aof_enabled") == "0":
        save = await _setting(link, "save")
        if save == "":
            found.append("Redis has no persistence (appendonly no, no save points): a restart loses all events")
    return found


async def _info(link: Link, section: str) -> dict[str, str]:
    try:
        text = (await link.call("INFO", section)).decode()
    except StoreError:
        return {}
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


async def _setting(link: Link, name: str) -> str | None:
    try:
        pair = await link.call("CONFIG", "GET", name)
    except StoreError:  # managed services often forbid it
        return None
    return pair[1].decode() if pair else None
