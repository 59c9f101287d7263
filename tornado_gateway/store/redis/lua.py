"""The Lua scripts. Redis executes each as one atomic step.

Scripts and not MULTI, for two reasons. A full Redis rejects MULTI as a whole if one command of it may need memory, so
that nothing could be settled, although settling frees memory; a script that has written may continue. And a script can
check the clock: one that reaches Redis after its caller has given up is rejected, not executed unnoticed.
"""

import hashlib
from dataclasses import dataclass, field
from importlib import resources

Value = str | bytes | int | float  # of an argument
Command = tuple[Value, ...]

_FILES = resources.files("tornado_gateway.store.redis") / "scripts"


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script under its hash."""

    text: str
    sha: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode()).hexdigest())  # noqa: S324


def _load(*names: str) -> Script:
    """Return these files of `scripts/` as one script."""
    return Script("".join((_FILES / f"{name}.lua").read_text(encoding="utf-8") for name in names))


# `on_time` defines `now` and rejects a script that reaches Redis too late. `ledger` detects lost events.
APPEND = _load("on_time", "ledger", "append")
CLAIM = _load("on_time", "claim")
HELD_CHUNKS = _load("on_time", "held_chunks")
SETTLE = _load("on_time", "ledger", "settle")
DEPTH = _load("ledger", "depth")
REQUEUE = _load("requeue")
TRIM = _load("trim")
DISCARD = _load("discard")
LEAVE = _load("leave")

SAVE_DOCUMENT = _load("save_document")
CONFIRM_DOCUMENT = _load("confirm_document")
RESTORE_DOCUMENT = _load("restore_document")
PIN_DOCUMENT = _load("pin_document")
UNPIN_DOCUMENT = _load("unpin_document")

ALIASES = _load("root_of", "aliases")
SET_ALIAS = _load("root_of", "set_alias")

ACQUIRE_LEASE = _load("acquire_lease")
RELEASE_LEASE = _load("release_lease")

LOAD_STATISTICS = _load("load_statistics")
REPLACE_STATISTICS = _load("replace_statistics")
FORGET_STATISTICS = _load("forget_statistics")

COPY_ENTRIES = _load("copy_entries")
DROP_ENTRIES = _load("drop_entries")
DROP_IF_EMPTY = _load("drop_if_empty")
