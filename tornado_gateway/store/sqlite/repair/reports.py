"""Reports about files that were moved aside. They lie beside these files, so that they outlive the process."""

import asyncio
import os
import re
from calendar import timegm
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import strptime
from typing import Any

import orjson

from tornado_gateway.tasks import Periodic

CHECK_SECONDS = 5.0
STAMP = "%Y%m%dT%H%M%SZ"
MOST_FILES = 20  # that are read, the newest ones
LONGEST_REPORT_BYTES = 4096

_NAME = re.compile(r"(.+)\.damaged-(\d{8}T\d{6}Z)(?:-\d+)?")
_KINDS = {"dead.db": "file of dead letters", "state.db": "state"}


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A file that was replaced. The numbers of rows are None if they are not known."""

    path: Path  # where the new file is
    copy: Path
    at: float
    rescued: int | None = None
    damaged: int | None = None

    @property
    def kind(self) -> str:
        return _KINDS.get(self.path.name, "event log")

    @property
    def message(self) -> str:
        rows = "" if self.rescued is None else f": {self.rescued} rows rescued, {self.damaged} rows damaged"
        return f"The {self.kind} {self.path} was damaged and is now {self.copy.name}{rows}"


def write_report(copy: Path, rescued: int, damaged: int) -> None:
    """Write the report about a file that is now `copy`. Best effort: the disk may be full."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(OSError):
        descriptor = os.open(_report_of(copy), flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps({"rescued": rescued, "damaged": damaged}))


def find_damaged_files(directory: Path) -> list[DamagedFile]:
    """Return the files in DATA_DIR and its environments that were moved aside, the newest first."""
    found: list[tuple[float, Path, str]] = []
    with suppress(OSError):
        for copy in chain(directory.iterdir(), directory.glob("environments/*/*")):
            if match := _NAME.fullmatch(copy.name):
                with suppress(ValueError):  # not a time
                    found.append((float(timegm(strptime(match[2], STAMP))), copy, match[1]))
    return [_described(*one) for one in sorted(found, reverse=True)[:MOST_FILES]]


def _described(at: float, copy: Path, name: str) -> DamagedFile:
    report = _read_report(_report_of(copy))
    numbers = [value if isinstance(value := report.get(name), int) else None for name in ("rescued", "damaged")]
    return DamagedFile(copy.with_name(name), copy, at, *numbers)


def _read_report(path: Path) -> dict[str, Any]:
    """Return the report, empty if there is none, as after an earlier version."""
    with suppress(OSError, orjson.JSONDecodeError), path.open("rb") as file:
        report = orjson.loads(file.read(LONGEST_REPORT_BYTES))
        return report if isinstance(report, dict) else {}
    return {}


def _report_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.json")


class DamageWatch:
    """Keeps the list of these files up to date: other workers find damage too, and operators delete the files."""

    def __init__(self, directory: Path, seconds: float = CHECK_SECONDS) -> None:
        self.files: list[DamagedFile] = []
        self._directory = directory
        self._timer = Periodic(self._check, seconds, jitter=0.2)

    def start(self) -> None:
        self._timer.start(at_once=True)

    def stop(self) -> None:
        self._timer.stop()

    async def _check(self) -> None:
        self.files = await asyncio.to_thread(find_damaged_files, self._directory)
