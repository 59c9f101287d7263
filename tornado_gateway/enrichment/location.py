"""Location of an address, from a MaxMind database.

`LocationReader` replaces its database while running; `location_download` fetches a new one from MaxMind. Every worker
has a reader; one worker at a time downloads.

Rules that keep a lookup from ever failing:
- A database is opened only after `open_checked` has read samples of all of it. One assignment replaces the old one.
- The C reader maps the file into memory, and truncating or overwriting a mapped file kills the process (SIGBUS). So
  only private copies are mapped, never the file that the operator or another program may write to.
- The old database is never closed explicitly: it is unmapped when the last lookup that uses it is done.
"""

import asyncio
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from tornado_gateway import logs
from tornado_gateway.enrichment.location_database import Location, LocationDatabase, Opened, open_checked
from tornado_gateway.enrichment.words import Words, digest_of, read_words
from tornado_gateway.errors import LocationError
from tornado_gateway.tasks import Periodic

logger = logging.getLogger(__name__)

Signature = tuple[int, int, int, int]

_SECTIONS = ("country", "region", "city")


class LocationReader:
    """Looks up addresses in the database at `path`, which may be absent, appear later, and change at any time.

    `overrides_file` (GEO_MAP_FILE) replaces names: `{"country": {"Czechia": "Czech Republic"}, "region": {...}, ...}`.
    `copy_directory` holds the private copy of the database. Workers with the same directory share one copy, in memory
    too. Without it, each reader has its own copy in the system's temporary directory.
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
        self.error: str | None = None  # the reason why the last database was rejected, until one is accepted
        self._words: Words = read_words(overrides_file, _SECTIONS) if overrides_file else {}
        self._words_digest = digest_of(self._words)
        self.version = f"{None} {self._words_digest}"  # changes with the locations that are found
        self._copy_directory = copy_directory
        self._cache_size = cache_size
        self._database: LocationDatabase | None = None
        self._seen: Signature | None = None
        self._changing = threading.Lock()
        self._timer: Periodic | None = None

    def lookup(self, ip: str) -> Location:
        """Return country, region and city, each only if it is known. Never raise.

        The dict is shared between callers: do not change it.
        """
        database = self._database
        return database.find(ip)[0] if database else {}

    def encoded(self, ip: str) -> bytes:
        """Return `lookup` as JSON, encoded once."""
        database = self._database
        return database.find(ip)[1] if database else b"{}"

    @property
    def hits(self) -> int:
        """Cache hits since the database was loaded."""
        database = self._database
        return database.asked - database.misses if database else 0

    @property
    def misses(self) -> int:
        """Cache misses since the database was loaded."""
        database = self._database
        return database.misses if database else 0

    @property
    def corrupt(self) -> int:
        """Records that could not be read since the database was loaded."""
        database = self._database
        return database.corrupt if database else 0

    @property
    def available(self) -> bool:
        """Return whether a database is open."""
        return self._database is not None

    @property
    def database_type(self) -> str | None:
        """The type that the database declares, such as GeoLite2-City."""
        database = self._database
        return database.database_type if database else None

    @property
    def build_epoch(self) -> int | None:
        """The time at which MaxMind built the database."""
        database = self._database
        return database.build_epoch if database else None

    def age_seconds(self, now: float) -> float | None:
        """Return the age of the data, None without a database."""
        database = self._database
        return now - database.build_epoch if database else None

    def open(self) -> bool:
        """Open the database for the first time. Return False, with `error` set, if it is absent or not valid."""
        return self._read() if self.path else False

    def close(self) -> None:
        """Drop the database: lookups find nothing from now on."""
        with self._changing:
            self._database = self._seen = None
            self.version = f"{None} {self._words_digest}"

    def check(self) -> bool:
        """Reload if the file has changed. Return True if a new database is in use. Safe on any thread."""
        return self.reload() if self._has_changed() else False

    def reload(self) -> bool:
        """Read the file again, changed or not. If it is rejected, the old database stays in use."""
        if self.path is None:
            return False
        is_read = self._read()
        if not is_read:
            extra = logs.once(f"location database {self.error}", is_of_instance=True)
            logger.warning("location database rejected: %s", self.error, extra=extra)
        return is_read

    def _read(self) -> bool:
        if self.path is not None:
            with suppress(LocationError):
                self.swap(self.path)
                return True
        return False

    def swap(self, path: Path) -> None:
        """Use and watch the database at `path`. Raise LocationError, and change nothing, if it is not valid."""
        with self._changing:
            try:
                signature = _signature(path)
                opened = self._open_copy(path, signature)
            except (LocationError, OSError) as error:
                rejection = error if isinstance(error, LocationError) else LocationError(f"{path}: {error}")
                self.error = str(rejection)
                raise rejection from None
            database = LocationDatabase(opened, self._words, self._cache_size)
            self.path, self._seen, self.error = path, signature, None
            self._database = database
            self.version = f"{database.digest} {self._words_digest}"
        logger.info("location database loaded: %s, built %s", database.database_type, time.ctime(database.build_epoch))

    def start(self, check_seconds: float = 60.0) -> None:
        """Watch the file."""
        self._timer = Periodic(self._check_in_thread, check_seconds, jitter=0.2)
        self._timer.start()

    def stop(self) -> None:
        """Stop watching. Lookups continue to work."""
        if self._timer:
            self._timer.stop()
            self._timer = None

    async def _check_in_thread(self) -> None:
        if self._has_changed():  # copying and reading takes some 0.2 s: not on the loop
            await asyncio.get_running_loop().run_in_executor(None, self.reload)

    def _has_changed(self) -> bool:
        if self.path is None:
            return False
        try:
            return _signature(self.path) != self._seen
        except LocationError as error:
            self.error = str(error)
            return False

    def _open_copy(self, path: Path, signature: Signature) -> Opened:
        if self._copy_directory is None:
            # A mapped file stays readable after its name is gone.
            with tempfile.TemporaryDirectory(prefix="location-") as directory:
                return self._copy_and_open(path, Path(directory) / path.name, signature)
        copy = self._copy_directory / f".{path.name}.{'-'.join(f'{part:x}' for part in signature)}.copy"
        opened = _open_present(copy, path)
        if opened is None:
            self._copy_directory.mkdir(parents=True, exist_ok=True)
            opened = self._copy_and_open(path, copy, signature)
        for older in self._copy_directory.glob(f".{path.name}.*.copy"):
            if older != copy:
                older.unlink(missing_ok=True)
        return opened

    def _copy_and_open(self, path: Path, copy: Path, signature: Signature) -> Opened:
        _copy(path, copy, signature)
        if path == self.path:
            self._seen = signature  # a rejected file is not tried again before it changes
        try:
            return open_checked(copy, path)
        except LocationError:
            copy.unlink(missing_ok=True)
            raise


# --- Files ---


def _signature(path: Path) -> Signature:
    """Return a value that changes whenever the file does."""
    try:
        found = path.stat()
    except OSError as error:
        raise LocationError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise LocationError(f"{path}: not a file")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _open_present(copy: Path, source: Path) -> Opened | None:
    """Open a copy that another worker, or a previous run, has made. None if there is none."""
    if copy.exists():
        with suppress(LocationError):  # truncated because the machine went down
            return open_checked(copy, source)
    return None


def _copy(source: Path, target: Path, signature: Signature) -> None:
    try:
        file, name = tempfile.mkstemp(prefix=f".{source.name}.", suffix=".part", dir=target.parent)
        try:
            with os.fdopen(file, "wb") as copy, source.open("rb") as original:
                shutil.copyfileobj(original, copy, 1 << 20)
            if _signature(source) != signature:
                raise LocationError(f"{source}: was written to while it was read")
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise LocationError(f"{source}: cannot be copied to {target.parent}: {error.strerror}") from None
