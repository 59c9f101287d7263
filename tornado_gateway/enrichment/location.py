"""Where an address is, from a MaxMind database.

`LocationReader` answers from memory and swaps its database while running; `location_download` fetches a new one from
MaxMind. Every worker has a reader; one worker at a time downloads.

Rules that keep a lookup from ever failing:
- A database is opened only after `open_checked` has read all over it, and replaces the old one by one assignment.
- The C reader maps the file into memory, and a mapped file that somebody truncates or overwrites kills the process
  (SIGBUS). So only private copies are mapped, never the file that the operator or another program may write to.
- The old database is never closed by hand: it is unmapped when the last lookup that uses it is done.
"""

import logging
import os
import random
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntoa, inet_ntop, inet_pton
from typing import Any

import maxminddb
import orjson
from tornado.ioloop import IOLoop, PeriodicCallback

from tornado_gateway.enrichment.device import Words, read_words
from tornado_gateway.errors import LocationError

logger = logging.getLogger(__name__)

Location = dict[str, str]
Answer = tuple[Location, bytes]  # the same as JSON
Signature = tuple[int, int, int, int]

_SECTIONS = ("country", "region", "city")
_NOWHERE: Answer = ({}, b"{}")
# What is found is remembered for all addresses that share these first bytes, when it holds for all of them.
_IPV4_NETWORK = 3
_IPV6_NETWORK = 8


# ---------------------------------------------------------------------------------------------------------------------
# Reading


class _Database:
    """One open database with what was recently found in it; both are replaced together.

    A record holds for a network, often for far more than the 256 addresses of a /24. Remembered by /24, visitors find
    what their neighbours have asked; reading a record, with its names in eight languages, takes 5 µs and more.
    """

    def __init__(self, reader: maxminddb.Reader, words: Words, cache_size: int) -> None:
        metadata = reader.metadata()
        self.database_type = metadata.database_type
        self.build_epoch = metadata.build_epoch
        self.asked = self.misses = self.corrupt = 0
        self._find = reader.get_with_prefix_len
        self._words = words
        self._cache_size = cache_size
        self._recent: dict[bytes, Answer] = {}  # by network, or by address where that is in a smaller one
        self._places: dict[bytes, Answer] = {}  # the same ones by what they say: networks share few places

    def answer(self, ip: str) -> Answer:
        # The C reader alone would accept "0x51.2.69.160" and "81.2".
        try:
            if ":" in ip:
                address = inet_pton(AF_INET6, ip)
                network = address[:_IPV6_NETWORK]
            else:
                address = inet_pton(AF_INET, ip)
                network = address[:_IPV4_NETWORK]
        except (OSError, ValueError):
            return _NOWHERE
        self.asked += 1
        recent = self._recent
        return recent.get(network) or recent.get(address) or self._read(ip, address, network)

    def _read(self, ip: str, address: bytes, network: bytes) -> Answer:
        self.misses += 1
        answer, bits = _NOWHERE, len(address) * 8
        try:
            record, bits = self._find(ip)
            if record:
                answer = self._shared(_location(record, self._words))
        except ValueError as error:
            # An IPv6 address in an IPv4-only database is a ValueError; undecodable text in a record is one as well.
            self.corrupt += isinstance(error, UnicodeError)
        except Exception:  # whatever a corrupt record makes of the reader
            self.corrupt += 1
        if len(self._recent) >= self._cache_size:  # what is asked often is soon back
            self._recent.clear()
            self._places.clear()
        self._recent[network if bits <= len(network) * 8 else address] = answer
        return answer

    def _shared(self, location: Location) -> Answer:
        encoded = bytes(memoryview(orjson.dumps(location)))  # orjson's own bytes keep a buffer of 4 KB
        return self._places.setdefault(encoded, (location, encoded))


class LocationReader:
    """Looks addresses up in the database at `path`, which may be absent, appear later, and change at any time.

    `overrides_file` (GEO_MAP_FILE) replaces names: `{"country": {"Czechia": "Czech Republic"}, "region": {...}, ...}`.
    `copy_directory` is where the private copy of the database is kept; with the same directory the workers of a machine
    share one copy, in memory too. Without it each reader has a copy of its own in the system's temporary directory.
    """

    def __init__(
        self,
        path: Path | None,
        overrides_file: Path | None = None,
        *,
        copy_directory: Path | None = None,
        cache_size: int = 20_000,
    ) -> None:
        self.path = path
        self.error: str | None = None  # why the last database was refused, until one is accepted
        self._words: Words = read_words(overrides_file, _SECTIONS) if overrides_file else {}
        self._copy_directory = copy_directory
        self._cache_size = cache_size
        self._database: _Database | None = None
        self._seen: Signature | None = None
        self._changing = threading.Lock()
        self._timer: PeriodicCallback | None = None

    def lookup(self, ip: str) -> Location:
        """Return country, region and city, each only when it is known; never raises.

        The dict is shared between callers: do not change it.
        """
        database = self._database
        return database.answer(ip)[0] if database else {}

    def encoded(self, ip: str) -> bytes:
        """Return `lookup` as JSON, encoded once."""
        database = self._database
        return database.answer(ip)[1] if database else b"{}"

    @property
    def hits(self) -> int:
        """How many questions the memory of recent networks has answered since the database was loaded."""
        database = self._database
        return database.asked - database.misses if database else 0

    @property
    def misses(self) -> int:
        """How many addresses have been looked up in the database since it was loaded."""
        database = self._database
        return database.misses if database else 0

    @property
    def corrupt(self) -> int:
        """How many records could not be read since the database was loaded."""
        database = self._database
        return database.corrupt if database else 0

    @property
    def available(self) -> bool:
        """Is there a database?"""
        return self._database is not None

    @property
    def database_type(self) -> str | None:
        """What the database calls itself, such as GeoLite2-City."""
        database = self._database
        return database.database_type if database else None

    @property
    def build_epoch(self) -> int | None:
        """When MaxMind built the database."""
        database = self._database
        return database.build_epoch if database else None

    def age_seconds(self, now: float) -> float | None:
        """How old the data is; None without a database."""
        database = self._database
        return now - database.build_epoch if database else None

    def open(self) -> bool:
        """Open the database for the first time. False, with `error` set, when it is absent or refused."""
        return self.reload() if self.path else False

    def close(self) -> None:
        """Know nothing any more."""
        with self._changing:
            self._database = self._seen = None

    def check(self) -> bool:
        """Reload when the file has changed; True when a new database is in use. Safe on any thread."""
        return self.reload() if self._has_changed() else False

    def reload(self) -> bool:
        """Read the file again, changed or not. When it is refused the old database stays in use."""
        if self.path is None:
            return False
        try:
            self.swap(self.path)
        except LocationError as error:
            logger.warning("location database refused: %s", error)
            return False
        return True

    def swap(self, path: Path) -> None:
        """Use the database at `path` from now on, and watch it; LocationError, and no change, when it is bad."""
        with self._changing:
            try:
                signature = _signature(path)
                reader = self._open_copy(path, signature)
            except (LocationError, OSError) as error:
                refusal = error if isinstance(error, LocationError) else LocationError(f"{path}: {error}")
                self.error = str(refusal)
                raise refusal from None
            database = _Database(reader, self._words, self._cache_size)
            self.path, self._seen, self.error = path, signature, None
            self._database = database
        logger.info("location database %s, built %s", database.database_type, time.ctime(database.build_epoch))

    def start(self, check_seconds: float = 60.0) -> None:
        """Watch the file."""
        self._timer = PeriodicCallback(self._check_in_thread, check_seconds * 1000, jitter=0.2)
        self._timer.start()

    def stop(self) -> None:
        """Stop watching; lookups go on."""
        if self._timer:
            self._timer.stop()
            self._timer = None

    async def _check_in_thread(self) -> None:
        if self._has_changed():  # copying and reading takes some 0.2 s: not on the loop
            await IOLoop.current().run_in_executor(None, self.reload)

    def _has_changed(self) -> bool:
        if self.path is None:
            return False
        try:
            return _signature(self.path) != self._seen
        except LocationError as error:
            self.error = str(error)
            return False

    def _open_copy(self, path: Path, signature: Signature) -> maxminddb.Reader:
        if self._copy_directory is None:
            # A mapped file stays readable after its name is gone.
            with tempfile.TemporaryDirectory(prefix="location-") as directory:
                return self._copy_and_open(path, Path(directory) / path.name, signature)
        copy = self._copy_directory / f".{path.name}.{'-'.join(f'{part:x}' for part in signature)}.copy"
        reader = None
        if copy.exists():
            with suppress(LocationError):  # cut off when the machine went down
                reader = open_checked(copy, path)
        if reader is None:
            self._copy_directory.mkdir(parents=True, exist_ok=True)
            reader = self._copy_and_open(path, copy, signature)
        for older in self._copy_directory.glob(f".{path.name}.*.copy"):
            if older != copy:
                older.unlink(missing_ok=True)
        return reader

    def _copy_and_open(self, path: Path, copy: Path, signature: Signature) -> maxminddb.Reader:
        _copy(path, copy, signature)
        if path == self.path:
            self._seen = signature  # what is refused now is not tried again before it changes
        try:
            return open_checked(copy, path)
        except LocationError:
            copy.unlink(missing_ok=True)
            raise


def _location(record: Any, words: Words) -> Location:
    """The record's English names, spelled as the dashboard does."""
    subdivisions = record.get("subdivisions")
    names = {
        "country": _english(record.get("country")) or _english(record.get("registered_country")),
        "region": _english(subdivisions[0]) if subdivisions else None,  # the widest comes first
        "city": _english(record.get("city")),
    }
    return {key: words[key].get(name, name) if words else name for key, name in names.items() if name}


def _english(place: Any) -> str | None:
    name = place.get("names", {}).get("en") if place else None
    return name if isinstance(name, str) else None


# ---------------------------------------------------------------------------------------------------------------------
# Opening

_WALKED_NETWORKS = 2_000
_PROBED_ADDRESSES = 2_000
_SEPARATOR = bytes(16)
_TYPES = ("City", "Country", "Enterprise")


def _signature(path: Path) -> Signature:
    """What changes whenever the file does."""
    try:
        found = path.stat()
    except OSError as error:
        raise LocationError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise LocationError(f"{path}: not a file")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _copy(source: Path, target: Path, signature: Signature) -> None:
    try:
        file, name = tempfile.mkstemp(prefix=f".{source.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise LocationError(f"{source}: cannot be copied to {target.parent}: {error.strerror}") from None
    try:
        with os.fdopen(file, "wb") as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy, 1 << 20)
        if _signature(source) != signature:
            raise LocationError(f"{source}: was written to while it was read")
        os.replace(name, target)
    except OSError as error:
        raise LocationError(f"{source}: cannot be copied to {target.parent}: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def open_checked(file: Path, shown: Path) -> maxminddb.Reader:
    """Open a database that nobody else writes to, after reading all over it; errors name `shown`."""
    try:
        if not file.stat().st_size:
            raise LocationError(f"{shown}: the file is empty")
        # The C reader can crash on corrupt records (a map's key that is no text), so the Python one goes first.
        with maxminddb.open_database(file, maxminddb.MODE_MMAP) as reader:
            metadata = reader.metadata()
            _check_metadata(metadata, shown)
            _check_tree(file, metadata, shown)
            _check_records(reader, metadata.ip_version, shown)
        return maxminddb.open_database(file)
    except LocationError:
        raise
    except Exception as error:
        raise LocationError(f"{shown}: not a MaxMind database, or cut off ({_said(error, file)})") from None


def _check_metadata(metadata: Any, shown: Path) -> None:
    _check_keys(vars(metadata))
    if not isinstance(metadata.database_type, str) or not any(word in metadata.database_type for word in _TYPES):
        raise LocationError(
            f"{shown}: database_type: expected one with City or Country, got {metadata.database_type!r}"
        )
    for key, expected in (("ip_version", (4, 6)), ("record_size", (24, 28, 32))):
        if getattr(metadata, key) not in expected:
            raise LocationError(f"{shown}: {key}: expected one of {expected}, got {getattr(metadata, key)!r}")
    if not isinstance(metadata.build_epoch, int):
        raise LocationError(f"{shown}: build_epoch: expected a number, got {metadata.build_epoch!r}")


def _check_tree(file: Path, metadata: Any, shown: Path) -> None:
    # Bytes that went missing or were added move the zeros between the search tree and the records.
    with file.open("rb") as content:
        content.seek(metadata.node_count * metadata.record_size // 4)
        if content.read(len(_SEPARATOR)) != _SEPARATOR:
            raise LocationError(f"{shown}: the search tree is corrupt or cut off")


def _check_records(reader: maxminddb.Reader, ip_version: int, shown: Path) -> None:
    # All records of a small database; of a large one, whose full walk takes minutes, the first ones and ones all over.
    known = 0
    try:
        walked = (record for _, record in islice(reader, _WALKED_NETWORKS))
        for record in chain(walked, map(reader.get, _addresses(ip_version))):
            if record is not None:
                _check_keys(record)
                known += bool(_location(record, {}))
    except Exception as error:
        raise LocationError(f"{shown}: a record or the search tree is corrupt ({error})") from None
    if not known:
        raise LocationError(f"{shown}: no record has a country")


def _check_keys(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a map has the key {key!r}")
            _check_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(inner)


def _addresses(ip_version: int) -> Iterator[str]:
    chance = random.Random(1)
    for _ in range(_PROBED_ADDRESSES):
        yield inet_ntoa(chance.randbytes(4))
        if ip_version == 6:
            yield inet_ntop(AF_INET6, b"\x20" + chance.randbytes(15))


def _said(error: Exception, file: Path) -> str:
    """The library's words without the name of the copy, which means nothing to the reader."""
    return str(error).replace(f" ({file})", "").replace(str(file), "the file") or type(error).__name__
