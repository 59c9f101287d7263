"""Location databases, and how tests put one in the place of another."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

DATABASES = Path(__file__).parents[1] / "data" / "geoip"
CITY = DATABASES / "GeoLite2-City-Test.mmdb"
GEOIP2_CITY = DATABASES / "GeoIP2-City-Test.mmdb"
COUNTRY = DATABASES / "GeoLite2-Country-Test.mmdb"
BROKEN = sorted((DATABASES / "broken").glob("*.mmdb"))
CONTENT = CITY.read_bytes()
MIDDLE = len(CONTENT) // 2
UNUSABLE = {
    "empty": (b"", "the file is empty"),
    "text": (b"<html>Sign in to download</html>", "not a MaxMind database, or cut off"),
    "archive": (b"\x1f\x8b\x08" + bytes(5000), "not a MaxMind database, or cut off"),
    "cut-off": (CONTENT[:MIDDLE], "not a MaxMind database, or cut off"),
    "without-its-last-byte": (CONTENT[:-1], "not a MaxMind database, or cut off"),
    "beginning-missing": (CONTENT[6:], "the search tree is corrupt or cut off"),
    "records-missing": (CONTENT[:MIDDLE] + CONTENT[MIDDLE + 3000 :], "corrupt"),
    "zeros-in-the-tree": (bytes(4000) + CONTENT[4000:], "corrupt|no record"),
    "records-overwritten": (
        CONTENT[:MIDDLE] + b"\xff" * 5000 + CONTENT[MIDDLE + 5000 :],
        "a record or the search tree is corrupt",
    ),
    "other-type": (CONTENT.replace(b"GeoLite2-City", b"GeoLite2-Asns"), "expected one with City or Country, got"),
}
LONDON = {"country": "United Kingdom", "region": "England", "city": "London"}


def replace(path: Path, content: bytes) -> None:
    """Give `path` new content by rename, with an mtime of its own."""
    part = path.with_suffix(".new")
    part.write_bytes(content)
    os.replace(part, path)


def overwrite(path: Path, content: bytes) -> None:
    """Write into the same file, as `cp` does."""
    with path.open("r+b") as file:
        file.truncate()
        file.write(content)
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.01)
