"""Where an address is, from a MaxMind database, and how that database is kept fresh.

`LocationReader` answers from memory and swaps its database while running; `download` and `GeoRefresh` fetch a new one
from MaxMind. Every worker has a reader; one worker at a time downloads.

Rules that keep a lookup from ever failing:
- A database is opened only after `_opened` has read all over it, and replaces the old one by one assignment.
- The C reader maps the file into memory, and a mapped file that somebody truncates or overwrites kills the process
  (SIGBUS). So only private copies are mapped, never the file that the operator or another program may write to.
- The old database is never closed by hand: it is unmapped when the last lookup that uses it is done.
"""

import asyncio
import gzip
import hashlib
import logging
import os
import random
import shutil
import stat
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntoa, inet_ntop, inet_pton
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import maxminddb
import orjson
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.ioloop import IOLoop, PeriodicCallback

from .device import Words, read_words
from .errors import GatewayError

logger = logging.getLogger(__name__)

Location = dict[str, str]
Signature = tuple[int, int, int, int]

_SECTIONS = ("country", "region", "city")
_LONGEST_ADDRESS = 45  # characters of an IPv6 address that ends in an IPv4 one
_NOWHERE: tuple[Location, bytes] = ({}, b"{}")


class LocationError(GatewayError):
    """A location database cannot be used, or cannot be fetched. `status` is MaxMind's HTTP status, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


# ---------------------------------------------------------------------------------------------------------------------
# Reading


class _Database:
    """One open database with the answers recently given from it; both are replaced together."""

    def __init__(self, reader: maxminddb.Reader, answer: Callable[[str], tuple[Location, bytes]]) -> None:
        metadata = reader.metadata()
        self.database_type = metadata.database_type
        self.build_epoch = metadata.build_epoch
        self.answer = answer


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
        cache_size: int = 10_000,
    ) -> None:
        self.path = path
        self.error: str | None = None  # why the last database was refused, until one is accepted
        self.corrupt = 0  # lookups whose record could not be read
        self._words: Words = read_words(overrides_file, _SECTIONS) if overrides_file else {}
        self._copy_directory = copy_directory
        self._cache_size = cache_size
        self._database: _Database | None = None
        self._answer: Callable[[str], tuple[Location, bytes]] = _answer_nowhere
        self._seen: Signature | None = None
        self._changing = threading.Lock()
        self._timer: PeriodicCallback | None = None

    def lookup(self, ip: str) -> Location:
        """Return country, region and city, each only when it is known; never raises.

        The dict is shared between callers: do not change it.
        """
        return self._answer(ip)[0] if len(ip) <= _LONGEST_ADDRESS else {}

    def encoded(self, ip: str) -> bytes:
        """Return `lookup` as JSON, encoded once."""
        return self._answer(ip)[1] if len(ip) <= _LONGEST_ADDRESS else b"{}"

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
            self._answer, self._database, self._seen = _answer_nowhere, None, None

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
            database = _Database(reader, lru_cache(self._cache_size)(self._reading(reader)))
            self.path, self._seen, self.error = path, signature, None
            self._database, self._answer = database, database.answer
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
                reader = _opened(copy, path)
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
            return _opened(copy, path)
        except LocationError:
            copy.unlink(missing_ok=True)
            raise

    def _reading(self, reader: maxminddb.Reader) -> Callable[[str], tuple[Location, bytes]]:
        words = self._words

        def read(ip: str) -> tuple[Location, bytes]:
            if not _is_address(ip):
                return _NOWHERE
            try:
                record = reader.get(ip)
                location = _location(record, words) if record else {}
                return (location, orjson.dumps(location)) if location else _NOWHERE
            except ValueError as error:
                # An IPv6 address in an IPv4-only database is a ValueError; undecodable text in a record is one as well.
                self.corrupt += isinstance(error, UnicodeError)
            except Exception:  # whatever a corrupt record makes of the reader
                self.corrupt += 1
            return _NOWHERE

        return read


def _answer_nowhere(ip: str) -> tuple[Location, bytes]:
    return _NOWHERE


def _is_address(text: str) -> bool:
    # The C reader alone would accept "0x51.2.69.160" and "81.2".
    try:
        inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


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


def _opened(file: Path, shown: Path) -> maxminddb.Reader:
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


# ---------------------------------------------------------------------------------------------------------------------
# Downloading: https://dev.maxmind.com/geoip/updating-databases (direct downloads)

DOWNLOAD_URL = "https://download.maxmind.com"
EDITION = "GeoLite2-City"

_LARGEST_DATABASE = 1 << 30
_MEMBERS_LIMIT = 100
_REDIRECTS_LIMIT = 5
_CONNECT_SECONDS = 20.0
_DOWNLOAD_SECONDS = 900.0
_CURLOPT_VERBOSE = 41

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Receipt:
    """What is kept beside a downloaded database: how to ask whether there is a newer one."""

    etag: str
    last_modified: str
    checked_at: float
    size: int
    mtime_ns: int


async def download(
    client: AsyncHTTPClient,
    *,
    user_id: int | str,
    license_key: str,
    directory: Path,
    base_url: str = DOWNLOAD_URL,
    edition: str = EDITION,
    progress: Progress | None = None,
) -> Path | None:
    """Fetch the newest database into `directory`; None when the one that is there is the newest.

    The new file takes the old one's place only when it is complete and has been opened. Raises LocationError.
    `progress` is called with the bytes received and the bytes expected (0 when unknown). The client's `max_body_size`
    must exceed the archive (about 35 MB for GeoLite2-City).
    """
    target = directory / f"{edition}.mmdb"
    receipt = _read_receipt(target)
    session = _Session(client, str(user_id), license_key)
    url = f"{base_url}/geoip/databases/{edition}/download?suffix=tar.gz"
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, _prepare, directory, edition)
    file, name = tempfile.mkstemp(prefix=f".{edition}.", suffix=".part", dir=directory)
    archive = Path(name)
    try:
        with os.fdopen(file, "wb") as body:
            response = await session.fetch(url, _conditions(receipt), body, progress)
        if response.code == 304 and receipt:
            _write_receipt(target, _Receipt(**asdict(receipt) | {"checked_at": time.time()}))
            return None
        _refuse_status(response.code, urlsplit(url).netloc, edition, response)
        await _check_sum(session, f"{url}.sha256", archive, edition)
        await loop.run_in_executor(None, _install, archive, target)
        _write_receipt(target, _receipt(target, response))
        return target
    except OSError as error:
        raise LocationError(f"{directory}: the downloaded database cannot be stored: {error.strerror}") from None
    finally:
        await loop.run_in_executor(None, _discard, archive)


def _discard(file: Path) -> None:
    file.unlink(missing_ok=True)


class _Session:
    """Requests with MaxMind's credentials, which are shown to no other host."""

    def __init__(self, client: AsyncHTTPClient, user_id: str, license_key: str) -> None:
        self._client = client
        self._user_id = user_id
        self._license_key = license_key

    async def fetch(
        self, url: str, headers: dict[str, str], body: IO[bytes], progress: Progress | None = None
    ) -> HTTPResponse:
        """GET into `body`, following redirects here: MaxMind redirects to a presigned address at another host."""
        first = urlsplit(url)
        for _ in range(_REDIRECTS_LIMIT):
            body.seek(0)
            body.truncate()
            here = urlsplit(url)
            if here.scheme not in ("http", "https") or (first.scheme == "https" and here.scheme != "https"):
                raise LocationError(f"{first.netloc} redirects to {here.scheme}://, which is not safe")
            is_ours = (here.scheme, here.netloc) == (first.scheme, first.netloc)
            response = await self._get(url, headers, _Receiver(body, progress), is_ours)
            if response.code not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
                body.flush()
                return response
            url = urljoin(url, response.headers["Location"])
        raise LocationError(f"{first.netloc} redirects too often")

    async def _get(self, url: str, headers: dict[str, str], receiver: "_Receiver", is_ours: bool) -> HTTPResponse:
        request = HTTPRequest(
            url,
            headers=headers,
            auth_username=self._user_id if is_ours else None,
            auth_password=self._license_key if is_ours else None,
            auth_mode="basic" if is_ours else None,
            follow_redirects=False,
            decompress_response=False,
            connect_timeout=_CONNECT_SECONDS,
            request_timeout=_DOWNLOAD_SECONDS,
            header_callback=receiver.header,
            streaming_callback=receiver.chunk,
            user_agent="tornado-gateway",
            prepare_curl_callback=_keep_headers_out_of_the_log,
        )
        try:
            response = await self._client.fetch(request, raise_error=False)
        except (HTTPClientError, OSError) as error:
            words = str(error).replace(self._license_key, "***")
            raise LocationError(f"{urlsplit(url).netloc}: {words}") from None
        if receiver.failure:
            raise receiver.failure
        return response


def _keep_headers_out_of_the_log(curl: Any) -> None:
    # At log level DEBUG Tornado's client logs every header, Authorization too.
    curl.setopt(_CURLOPT_VERBOSE, 0)


class _Receiver:
    """Writes a body to a file as it arrives. Errors are kept: raised in a callback they would only be logged."""

    def __init__(self, body: IO[bytes], progress: Progress | None) -> None:
        self._body = body
        self._progress = progress
        self._expected = 0
        self._received = 0
        self.failure: Exception | None = None

    def header(self, line: str) -> None:
        name, _, value = line.partition(":")
        if name.lower() == "content-length" and value.strip().isdecimal():
            self._expected = int(value)

    def chunk(self, data: bytes) -> None:
        self._received += len(data)
        try:
            self._body.write(data)
        except (OSError, ValueError) as error:  # disk full; or closed, when the download was abandoned
            self.failure = error
        if self._progress:
            self._progress(self._received, self._expected)


def _refuse_status(status: int, host: str, edition: str, response: HTTPResponse) -> None:
    if status == 200:
        return
    if status == 401:
        raise LocationError(f"MAXMIND_LICENSE_KEY is not accepted by {host} (status 401)", status)
    if status == 403:
        raise LocationError(f"MAXMIND_USER_ID may not download {edition} from {host} (status 403)", status)
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        hint = f"; it asks to wait {wait} s" if wait.isdecimal() else ""
        raise LocationError(f"{host}: the account's download limit is reached (status 429){hint}", status)
    raise LocationError(f"{host} answered with status {status} for {edition}", status)


async def _check_sum(session: _Session, url: str, archive: Path, edition: str) -> None:
    with tempfile.TemporaryFile() as body:
        response = await session.fetch(url, {}, body)
        _refuse_status(response.code, urlsplit(url).netloc, f"{edition}'s checksum", response)
        body.seek(0)
        expected = body.read(64).decode("ascii", "replace").lower()  # "<hex>  GeoLite2-City_20260101.tar.gz"
    actual = await asyncio.get_running_loop().run_in_executor(None, _sha256, archive)
    if actual != expected:
        raise LocationError(f"{edition}: the download's SHA-256 does not match: expected {expected!r}, got {actual!r}")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _prepare(directory: Path, edition: str) -> None:
    """Make the directory and sweep away what a killed download left."""
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f".{edition}.*.part"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 2 * _DOWNLOAD_SECONDS:
                left.unlink()


def _install(archive: Path, target: Path) -> None:
    """Unpack, try, and only then put the database in its place."""
    file, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=".part", dir=target.parent)
    unpacked = Path(name)
    try:
        with os.fdopen(file, "wb") as database:
            _unpack(archive, database, target.name)
            database.flush()
            os.fsync(database.fileno())
        _opened(unpacked, Path(f"downloaded {target.name}"))
        unpacked.chmod(0o644)
        os.replace(unpacked, target)
        _sync_directory(target.parent)
    finally:
        _discard(unpacked)


def _unpack(archive: Path, database: IO[bytes], name: str) -> None:
    """Write the archive's one database. No name in the archive is ever used as a path."""
    unpacked, total = 0, 0
    try:
        # tarfile's own "r|gz" takes a cut-off archive for a shorter one.
        with gzip.open(archive) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as members:
            for number, member in enumerate(members):
                total += member.size
                if number >= _MEMBERS_LIMIT or total > _LARGEST_DATABASE:
                    raise LocationError(f"{name}: the downloaded archive is too large")
                if not (member.isfile() or member.isdir()) or _leads_out(member.name):
                    raise LocationError(f"{name}: the downloaded archive holds {member.name!r}, which is not safe")
                content = members.extractfile(member) if member.name.endswith(".mmdb") else None
                if content:
                    unpacked += 1
                    shutil.copyfileobj(content, database, 1 << 20)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise LocationError(f"{name}: the downloaded archive is corrupt or cut off ({error})") from None
    if unpacked != 1:
        raise LocationError(f"{name}: the downloaded archive holds {unpacked} databases, expected 1")


def _leads_out(name: str) -> bool:
    return name.startswith("/") or "\\" in name or ".." in name.split("/")


def _sync_directory(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _receipt_file(target: Path) -> Path:
    return target.with_suffix(".json")


def _read_receipt(target: Path) -> _Receipt | None:
    """None unless it belongs to the file that is there: else a damaged database would be "not modified" for ever."""
    try:
        receipt = _Receipt(**orjson.loads(_receipt_file(target).read_bytes()))
        found = target.stat()
    except (OSError, ValueError, TypeError):
        return None
    return receipt if (found.st_size, found.st_mtime_ns) == (receipt.size, receipt.mtime_ns) else None


def _receipt(target: Path, response: HTTPResponse) -> _Receipt:
    found = target.stat()
    etag, last_modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    return _Receipt(etag, last_modified, time.time(), found.st_size, found.st_mtime_ns)


def _write_receipt(target: Path, receipt: _Receipt) -> None:
    part = target.with_suffix(".json.part")
    part.write_bytes(orjson.dumps(asdict(receipt)))
    os.replace(part, _receipt_file(target))


def _conditions(receipt: _Receipt | None) -> dict[str, str]:
    if receipt is None:
        return {}
    headers = {"If-None-Match": receipt.etag, "If-Modified-Since": receipt.last_modified}
    return {name: value for name, value in headers.items() if value}


# ---------------------------------------------------------------------------------------------------------------------
# Refreshing

_REFRESH_SECONDS = 24 * 3600.0
_RETRY_SECONDS = 60.0
_LONGEST_RETRY_SECONDS = 6 * 3600.0
_LEASE_RETRY_SECONDS = 900.0


class GeoRefresh:
    """Downloads the database at start and once a day, with jitter, while `lease` says that it is this worker's turn.

    `fetch` is `download` with its arguments, `target` the file that it makes. The lease belongs to that file's
    directory: machines that do not share it each need their own. A worker without the lease asks again now and then,
    in case its holder has died; when it finds the file checked recently it leaves MaxMind alone.
    `changed` is called after a download (usually `LocationReader.check`); the other workers see the file change.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Path | None]],
        target: Path,
        lease: Callable[[], Awaitable[bool]],
        changed: Callable[[], object] | None = None,
        *,
        refresh_seconds: float = _REFRESH_SECONDS,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self.error: str | None = None
        self.checked_at: float | None = None
        self._fetch = fetch
        self._target = target
        self._lease = lease
        self._changed = changed
        self._refresh_seconds = refresh_seconds
        self._retry_seconds = retry_seconds
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first refresh starts at once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End, abandoning a download under way; the database that is there stays."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def refresh(self) -> float:
        """Do what is due now; return the seconds until the next time."""
        receipt = _read_receipt(self._target)
        if receipt:
            self.checked_at = receipt.checked_at
            due = receipt.checked_at + self._refresh_seconds - time.time()
            if 0 < due <= self._refresh_seconds:
                return due
        if not await self._lease():
            return min(_LEASE_RETRY_SECONDS, self._refresh_seconds)
        path = await self._fetch()
        self.checked_at, self.error, self._failures = time.time(), None, 0
        if path:
            logger.info("downloaded %s", path)
            if self._changed:
                await asyncio.get_running_loop().run_in_executor(None, self._changed)
        return self._refresh_seconds

    async def _run(self) -> None:
        while True:
            try:
                wait = await self.refresh()
            except Exception as error:  # also what the lease's store raises; a refresh must never end
                self._failures += 1
                self.error = str(error) or type(error).__name__
                wait = min(self._retry_seconds * 2.0 ** min(self._failures - 1, 20), _LONGEST_RETRY_SECONDS)
                logger.warning("location database not refreshed, next try in %.0f s: %s", wait, self.error)
            await asyncio.sleep(wait * random.uniform(0.9, 1.1))
