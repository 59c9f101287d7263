"""The location database from MaxMind's download API, once a day, into a file that `location.LocationReader` watches.

Each worker runs a `GeoRefresh`. The `geo update` command calls `download` once.
"""

import asyncio
import base64
import gzip
import hashlib
import logging
import os
import random
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urljoin, urlsplit

import orjson

from tornado_gateway.backoff import Backoff
from tornado_gateway.enrichment.location_database import open_checked
from tornado_gateway.errors import LocationError
from tornado_gateway.tasks import end_tasks

logger = logging.getLogger(__name__)

DOWNLOAD_URL = "https://download.maxmind.com"
EDITION = "GeoLite2-City"

_LARGEST_DATABASE = 1 << 30
_MEMBERS_LIMIT = 100
_REDIRECTS_LIMIT = 5
CONNECT_SECONDS = 20.0
DOWNLOAD_SECONDS = 900.0
LARGEST_ARCHIVE_BYTES = 1 << 30  # GeoLite2-City has about 35 MB

Progress = Callable[[int, int], None]


class HttpResponse(Protocol):
    """A response whose body went to a receiver. The names of headers are in lower case."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...


class HttpClient(Protocol):
    """A client that does not follow redirects. Errors of the network are OSErrors."""

    async def request(
        self, url: str, headers: Mapping[str, str], *, receive: Callable[[bytes, int], object]
    ) -> HttpResponse:
        """GET. `receive` gets each part of the body, and the size of the whole (0 if unknown)."""


@dataclass(frozen=True)
class _Receipt:
    """Stored beside a downloaded database, for conditional requests for a newer one."""

    etag: str
    last_modified: str
    checked_at: float
    size: int
    mtime_ns: int


async def download(
    client: HttpClient,
    *,
    user_id: int | str,
    license_key: str,
    directory: Path,
    base_url: str = DOWNLOAD_URL,
    edition: str = EDITION,
    progress: Progress | None = None,
) -> Path | None:
    """Fetch the newest database into `directory`; None if the present one is the newest.

    The new file replaces the old one only after it is complete and has been opened. Raise LocationError otherwise.
    `progress` is called with the bytes received and the bytes expected (0 if unknown). The client must accept bodies
    of LARGEST_ARCHIVE_BYTES.
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
        if response.status == 304 and receipt:
            _write_receipt(target, replace(receipt, checked_at=time.time()))
            return None
        _check_status(response, url, edition)
        await _check_sum(session, f"{url}.sha256", archive, edition)
        await loop.run_in_executor(None, _install, archive, target)
        _write_receipt(target, _receipt(target, response))
        return target
    except OSError as error:
        raise LocationError(f"{directory}: the downloaded database cannot be stored: {error.strerror}") from None
    finally:
        await loop.run_in_executor(None, _discard, archive)


class _Session:
    """Requests with MaxMind's credentials, which are sent to no other host."""

    def __init__(self, client: HttpClient, user_id: str, license_key: str) -> None:
        self._client = client
        credentials = base64.b64encode(f"{user_id}:{license_key}".encode()).decode()
        self._authorization = f"Basic {credentials}"

    async def fetch(
        self, url: str, headers: dict[str, str], body: IO[bytes], progress: Progress | None = None
    ) -> HttpResponse:
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
            if response.status not in (301, 302, 303, 307, 308) or "location" not in response.headers:
                body.flush()
                return response
            url = urljoin(url, response.headers["location"])
        raise LocationError(f"{first.netloc} redirects too often")

    async def _get(self, url: str, headers: dict[str, str], receiver: "_Receiver", is_ours: bool) -> HttpResponse:
        if is_ours:
            headers = headers | {"Authorization": self._authorization}
        try:
            return await self._client.request(url, headers, receive=receiver.chunk)
        except OSError as error:
            if error is receiver.failure:
                raise
            raise LocationError(f"{urlsplit(url).netloc}: {error}") from None


class _Receiver:
    """Writes a body to a file as it arrives. `failure` is the error of writing, if there was one."""

    def __init__(self, body: IO[bytes], progress: Progress | None) -> None:
        self._body = body
        self._progress = progress
        self._received = 0
        self.failure: Exception | None = None

    def chunk(self, data: bytes, expected: int) -> None:
        self._received += len(data)
        try:
            self._body.write(data)
        except (OSError, ValueError) as error:  # disk full; or closed, because the download was cancelled
            self.failure = error
            raise
        if self._progress:
            self._progress(self._received, expected)


_STATUSES = {
    401: "MAXMIND_LICENSE_KEY is not accepted by {host} (status 401)",
    403: "MAXMIND_USER_ID is not permitted to download {document} from {host} (status 403)",
    429: "{host}: the account's download limit is reached (status 429){hint}",
}


def _check_status(response: HttpResponse, url: str, document: str) -> None:
    """Raise LocationError unless the response has a document."""
    if response.status == 200:
        return
    wait = response.headers.get("retry-after", "")
    hint = f"; it asks to wait {wait} s" if wait.isdecimal() else ""
    text = _STATUSES.get(response.status, "{host} returned status {status} for {document}")
    host = urlsplit(url).netloc
    raise LocationError(text.format(host=host, document=document, hint=hint, status=response.status), response.status)


async def _check_sum(session: _Session, url: str, archive: Path, edition: str) -> None:
    with tempfile.TemporaryFile() as body:
        response = await session.fetch(url, {}, body)
        _check_status(response, url, f"{edition}'s checksum")
        body.seek(0)
        expected = body.read(64).decode("ascii", "replace").lower()  # "<hex>  GeoLite2-City_20260101.tar.gz"
    actual = await asyncio.get_running_loop().run_in_executor(None, _sha256, archive)
    if actual != expected:
        raise LocationError(f"{edition}: the download's SHA-256 does not match: expected {expected!r}, got {actual!r}")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _prepare(directory: Path, edition: str) -> None:
    """Make the directory and delete the remains of killed downloads."""
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f".{edition}.*.part"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 2 * DOWNLOAD_SECONDS:
                left.unlink()


def _install(archive: Path, target: Path) -> None:
    """Unpack and check the database before it replaces the old one."""
    file, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=".part", dir=target.parent)
    unpacked = Path(name)
    try:
        with os.fdopen(file, "wb") as database:
            _unpack(archive, database, target.name)
            database.flush()
            os.fsync(database.fileno())
        open_checked(unpacked, Path(f"downloaded {target.name}"))
        unpacked.chmod(0o644)
        os.replace(unpacked, target)
        _sync_directory(target.parent)
    finally:
        _discard(unpacked)


def _discard(file: Path) -> None:
    file.unlink(missing_ok=True)


def _unpack(archive: Path, database: IO[bytes], name: str) -> None:
    """Write the archive's one database. No name in the archive is ever used as a path."""
    unpacked, total = 0, 0
    try:
        # tarfile's own "r|gz" does not notice that an archive is cut off.
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
    """Return None unless it belongs to the present file. Otherwise a damaged one would be "not modified" forever."""
    try:
        receipt = _Receipt(**orjson.loads(_receipt_file(target).read_bytes()))
        found = target.stat()
    except (OSError, ValueError, TypeError):
        return None
    return receipt if (found.st_size, found.st_mtime_ns) == (receipt.size, receipt.mtime_ns) else None


def _receipt(target: Path, response: HttpResponse) -> _Receipt:
    found = target.stat()
    etag, last_modified = response.headers.get("etag", ""), response.headers.get("last-modified", "")
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


# --- Refreshing ---

_REFRESH_SECONDS = 24 * 3600.0
_RETRY_SECONDS = 60.0
_LONGEST_RETRY_SECONDS = 6 * 3600.0
_LEASE_RETRY_SECONDS = 900.0


class GeoRefresh:
    """Downloads the database at start and once a day, with jitter, while this worker holds the lease.

    `fetch` is `download` with its arguments, `target` the file that it makes. The lease belongs to that file's
    directory: machines that do not share it each need their own. A worker without the lease tries again now and then,
    in case its holder has died. It does not contact MaxMind if the file was checked recently.
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
        self._backoff = Backoff(retry_seconds, _LONGEST_RETRY_SECONDS)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start. The first refresh begins at once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop, and cancel a download in flight. The present database stays."""
        await end_tasks(self._task)
        self._task = None

    async def refresh(self) -> float:
        """Refresh if it is due. Return the seconds until the next time."""
        seconds = self._seconds_left()
        if seconds > 0:
            return seconds
        if not await self._lease():
            return min(_LEASE_RETRY_SECONDS, self._refresh_seconds)
        path = await self._fetch()
        self.checked_at, self.error = time.time(), None
        self._backoff.reset()
        if path:
            logger.info("location database was downloaded: %s", path)
            if self._changed:
                await asyncio.get_running_loop().run_in_executor(None, self._changed)
        return self._refresh_seconds

    def _seconds_left(self) -> float:
        """Return the time until the next refresh, 0 if it is due, or if the wall clock was set back meanwhile."""
        receipt = _read_receipt(self._target)
        if receipt is None:
            return 0.0
        self.checked_at = receipt.checked_at
        seconds = receipt.checked_at + self._refresh_seconds - time.time()
        return seconds if 0 < seconds <= self._refresh_seconds else 0.0

    async def _run(self) -> None:
        while True:
            try:
                wait = await self.refresh()
            except Exception as error:  # errors of the lease's store as well: the task must never end
                self.error = str(error) or type(error).__name__
                wait = self._backoff.next()
                logger.warning("location database was not refreshed, retrying in %.0f s: %s", wait, self.error)
            await asyncio.sleep(wait * random.uniform(0.9, 1.1))
