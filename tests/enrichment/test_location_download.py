"""Downloading location databases, from a stand-in for MaxMind on loopback."""

import asyncio
import hashlib
import io
import logging
import os
import tarfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from location_files import (
    CONTENT,
    GEOIP2_CITY,
    LONDON,
    MIDDLE,
    UNUSABLE,
    replace,
    until,
)
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.enrichment.location_download import LARGEST_ARCHIVE_BYTES, GeoRefresh, download
from tornado_gateway.errors import LocationError
from tornado_gateway.upstream.curl import CurlPool

KEY = "licence-key-that-nobody-may-see"
USER = 4711
FOLDER = "GeoLite2-City_20260204"


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE
    return member, b""


def like_maxminds(database: bytes) -> bytes:
    return archive_of(
        folder(FOLDER),
        file(f"{FOLDER}/COPYRIGHT.txt", b"Copyright"),
        file(f"{FOLDER}/GeoLite2-City.mmdb", database),
        file(f"{FOLDER}/LICENSE.txt", b"License"),
    )


class MaxMind:
    """The download service: what it will answer, and what it was asked."""

    def __init__(self) -> None:
        self.archive = like_maxminds(CONTENT)
        self.checksum: str | None = None
        self.failures: list[int] = []  # statuses of the next answers
        self.etag = '"first"'
        self.last_modified = "Wed, 04 Feb 2026 12:00:00 GMT"
        self.storage: str | None = None  # where downloads are redirected to
        self.requests: list[Any] = []
        self.url = ""
        self.may_finish = asyncio.Event()  # the answers of /slow

    def asked(self, path: str) -> list[Any]:
        return [request for request in self.requests if request.uri.startswith(path)]


class DatabaseHandler(RequestHandler):
    def get(self) -> None:
        maxmind: MaxMind = self.settings["maxmind"]
        maxmind.requests.append(self.request)
        if maxmind.failures:
            self.set_status(maxmind.failures.pop(0))
            self.set_header("Retry-After", "3600")
            self.finish(f"Your key {KEY} has a problem" if self.get_status() != 304 else None)
        elif self.request.headers.get("Authorization") != "Basic NDcxMTpsaWNlbmNlLWtleS10aGF0LW5vYm9keS1tYXktc2Vl":
            self.send_error(401)
        elif self.get_argument("suffix") == "tar.gz.sha256":
            checksum = maxmind.checksum or hashlib.sha256(maxmind.archive).hexdigest()
            self.finish(f"{checksum}  {FOLDER}.tar.gz\n")
        elif maxmind.storage:
            self.redirect(f"{maxmind.storage}/storage/archive?X-Amz-Signature=abc")
        else:
            send_archive(self)


class StorageHandler(RequestHandler):
    def get(self) -> None:
        self.settings["maxmind"].requests.append(self.request)
        send_archive(self)


def send_archive(handler: RequestHandler) -> None:
    maxmind: MaxMind = handler.settings["maxmind"]
    handler.set_header("ETag", maxmind.etag)
    handler.set_header("Last-Modified", maxmind.last_modified)
    if handler.request.headers.get("If-Modified-Since") == maxmind.last_modified:
        handler.set_status(304)
        handler.finish()
    else:
        handler.finish(maxmind.archive)


class SlowHandler(RequestHandler):
    async def get(self) -> None:
        archive = self.settings["maxmind"].archive
        self.write(archive[:1000])
        await self.flush()
        await self.settings["maxmind"].may_finish.wait()
        self.finish(archive[1000:])


class LoopHandler(RequestHandler):
    def get(self) -> None:
        self.redirect(self.request.uri or "/")


Visit = Callable[[MaxMind, Callable[..., Awaitable[Path | None]]], Awaitable[None]]


def visit(directory: Path, test: Visit) -> None:
    """Run a test with the service, and `download` bound to it."""

    async def run() -> None:
        maxmind = MaxMind()
        application = Application(
            [
                (r"/geoip/databases/GeoLite2-City/download", DatabaseHandler),
                (r"/storage/archive", StorageHandler),
                (r"/loop/.*", LoopHandler),
                (r"/slow/.*", SlowHandler),
            ],
            maxmind=maxmind,
            log_function=lambda handler: None,
        )
        servers, ports = [], []
        for _ in range(2):
            socket, port = bind_unused_port()
            servers.append(HTTPServer(application))
            servers[-1].add_socket(socket)
            ports.append(port)
        maxmind.url = f"http://127.0.0.1:{ports[0]}"
        maxmind.other_url = f"http://127.0.0.1:{ports[1]}"
        client = CurlPool(timeout_seconds=60, max_response_bytes=LARGEST_ARCHIVE_BYTES)
        fetch = partial(download, client, user_id=USER, license_key=KEY, directory=directory, base_url=maxmind.url)
        try:
            await test(maxmind, fetch)
        finally:
            client.close()
            for server in servers:
                server.stop()
                await server.close_all_connections()

    asyncio.run(run())


def visible(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_download(tmp_path):
    directory, seen = tmp_path / "data", []

    async def test(maxmind, fetch):
        path = await fetch(progress=lambda received, expected: seen.append((received, expected)))
        assert path == directory / "GeoLite2-City.mmdb"
        assert path.read_bytes() == CONTENT
        assert seen[-1][0] >= len(maxmind.archive)
        assert seen[-1][1] in (0, len(maxmind.archive))
        assert visible(directory) == {"GeoLite2-City.mmdb", "GeoLite2-City.json"}

    visit(directory, test)
    reader = LocationReader(directory / "GeoLite2-City.mmdb")
    assert reader.open()
    assert reader.lookup("81.2.69.160") == LONDON


def test_download_of_what_is_already_there(tmp_path):
    async def test(maxmind, fetch):
        assert await fetch()
        asked = len(maxmind.requests)
        assert await fetch() is None
        assert len(maxmind.requests) == asked + 1
        assert maxmind.requests[-1].headers["If-None-Match"] == '"first"'
        maxmind.etag, maxmind.last_modified = '"second"', "Thu, 05 Feb 2026 12:00:00 GMT"
        maxmind.archive = like_maxminds(GEOIP2_CITY.read_bytes())
        assert await fetch()
        assert (tmp_path / "GeoLite2-City.mmdb").read_bytes() == GEOIP2_CITY.read_bytes()

    visit(tmp_path, test)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: replace(path, b"damaged")], ids=["removed", "damaged"])
def test_download_replaces_a_database_that_is_not_the_downloaded_one(tmp_path, damage):
    async def test(maxmind, fetch):
        path = await fetch()
        damage(path)
        assert await fetch() == path
        assert path.read_bytes() == CONTENT

    visit(tmp_path, test)


def test_redirect_to_another_host_shows_it_no_credentials(tmp_path):
    async def test(maxmind, fetch):
        maxmind.storage = maxmind.other_url
        assert await fetch()
        (stored,) = maxmind.asked("/storage/")
        assert stored.host == maxmind.other_url.removeprefix("http://")
        assert "Authorization" not in stored.headers
        assert KEY not in str(stored.headers)
        assert await fetch() is None  # the condition is passed on
        maxmind.storage = maxmind.url
        maxmind.last_modified = "Thu, 05 Feb 2026 12:00:00 GMT"
        assert await fetch()
        assert "Authorization" in maxmind.asked("/storage/")[-1].headers  # its own host may know

    visit(tmp_path, test)


@pytest.mark.parametrize(
    ("storage", "problem"),
    [("ftp://127.0.0.1", "redirects to ftp://, which is not safe"), ("{url}/loop", "redirects too often")],
)
def test_redirects_that_lead_nowhere(tmp_path, storage, problem):
    async def test(maxmind, fetch):
        maxmind.storage = storage.format(url=maxmind.url)
        with pytest.raises(LocationError, match=problem):
            await fetch()

    visit(tmp_path, test)


STATUSES = {
    401: r"MAXMIND_LICENSE_KEY is not accepted by 127.0.0.1:\d+ \(status 401\)",
    403: r"MAXMIND_USER_ID is not permitted to download GeoLite2-City",
    404: r"returned status 404 for GeoLite2-City",
    429: r"the account's download limit is reached \(status 429\); it asks to wait 3600 s",
    500: r"returned status 500",
    304: r"returned status 304",
}


@pytest.mark.parametrize(("status", "problem"), STATUSES.items(), ids=STATUSES)
def test_refusals_are_told_without_the_key(tmp_path, caplog, status, problem):
    caplog.set_level(logging.DEBUG)

    async def test(maxmind, fetch):
        maxmind.failures = [status]
        with pytest.raises(LocationError, match=problem) as raised:
            await fetch()
        assert raised.value.status == status
        assert KEY not in str(raised.value)
        assert await fetch()  # and then it works

    visit(tmp_path, test)
    assert KEY not in caplog.text
    assert "Authorization" not in caplog.text


def test_a_checksum_that_fails_is_told(tmp_path):
    async def test(maxmind, fetch):
        maxmind.failures = [200]  # answers the archive's request with a text
        with pytest.raises(LocationError, match="SHA-256 does not match"):
            await fetch()

    visit(tmp_path, test)


def test_a_host_that_does_not_answer(tmp_path):
    socket, port = bind_unused_port()
    socket.close()

    async def test(maxmind, fetch):
        with pytest.raises(LocationError, match=f"127.0.0.1:{port}: ") as raised:
            await fetch(base_url=f"http://127.0.0.1:{port}")
        assert raised.value.status == 0

    visit(tmp_path, test)


MMDB = f"{FOLDER}/GeoLite2-City.mmdb"
BAD_ARCHIVES = {
    "cut-off": (like_maxminds(CONTENT)[:-3000], "archive is corrupt or cut off"),
    "cut-off-early": (like_maxminds(CONTENT)[:200], "archive is corrupt or cut off"),
    "not-an-archive": (b"<html>", "archive is corrupt or cut off"),
    "empty": (b"", "archive is corrupt or cut off"),
    "no-database": (archive_of(file(f"{FOLDER}/README.txt", b"")), "holds 0 databases, expected 1"),
    "two-databases": (archive_of(file(MMDB, CONTENT), file(f"{FOLDER}/b.mmdb", CONTENT)), "holds 2 databases"),
    "parent": (archive_of(file("../../evil.mmdb", CONTENT)), "holds '../../evil.mmdb', which is not safe"),
    "parent-inside": (archive_of(file(f"{FOLDER}/../../evil", b"x"), file(MMDB, CONTENT)), "which is not safe"),
    "absolute": (archive_of(file("/tmp/evil.mmdb", CONTENT)), "holds '/tmp/evil.mmdb', which is not safe"),
    "symlink": (archive_of(link(MMDB, "/etc/passwd")), "which is not safe"),
    "hard-link": (archive_of(link(MMDB, "../other", tarfile.LNKTYPE)), "which is not safe"),
    "fifo": (archive_of(link(MMDB, "", tarfile.FIFOTYPE)), "which is not safe"),
    "many-members": (archive_of(*(file(f"{number}.txt", b"") for number in range(200))), "archive is too large"),
    "database-cut-off": (like_maxminds(CONTENT[:MIDDLE]), "downloaded GeoLite2-City.mmdb: not a MaxMind database"),
    "database-broken": (like_maxminds(UNUSABLE["records-overwritten"][0]), "downloaded .* is corrupt"),
    "database-empty": (like_maxminds(b""), "the file is empty"),
    "database-of-another-type": (like_maxminds(UNUSABLE["other-type"][0]), "expected one with City or Country"),
}


@pytest.mark.parametrize(("archive", "problem"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive_never_replaces_a_database(tmp_path, archive, problem):
    directory = tmp_path / "data"

    async def test(maxmind, fetch):
        assert await fetch()
        before = visible(tmp_path), visible(directory)
        maxmind.archive, maxmind.last_modified = archive, "Thu, 05 Feb 2026 12:00:00 GMT"
        with pytest.raises(LocationError, match=problem):
            await fetch()
        assert (directory / "GeoLite2-City.mmdb").read_bytes() == CONTENT
        assert (visible(tmp_path), visible(directory)) == before

    visit(directory, test)


def test_a_wrong_checksum_never_replaces_a_database(tmp_path):
    async def test(maxmind, fetch):
        assert await fetch()
        maxmind.archive = like_maxminds(GEOIP2_CITY.read_bytes())
        maxmind.last_modified = "Thu, 05 Feb 2026 12:00:00 GMT"
        maxmind.checksum = "0" * 64
        with pytest.raises(LocationError, match="SHA-256 does not match"):
            await fetch()
        assert (tmp_path / "GeoLite2-City.mmdb").read_bytes() == CONTENT
        maxmind.checksum = None
        assert await fetch()

    visit(tmp_path, test)


def test_a_huge_member_is_not_unpacked(tmp_path):
    huge = tarfile.TarInfo(MMDB)
    huge.size = 1 << 31

    async def test(maxmind, fetch):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.fileobj.write(huge.tobuf())
        maxmind.archive = packed.getvalue()
        with pytest.raises(LocationError, match="archive is too large"):
            await fetch()

    visit(tmp_path, test)


def test_an_abandoned_download_leaves_nothing(tmp_path, caplog):
    seen = []

    async def test(maxmind, fetch):
        maxmind.storage = f"{maxmind.url}/slow"
        task = asyncio.ensure_future(fetch(progress=lambda received, expected: seen.append(received)))
        await until(lambda: bool(seen) and seen[-1] >= 1000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        maxmind.may_finish.set()
        await asyncio.sleep(0.2)  # the rest arrives
        assert visible(tmp_path) == set()

    visit(tmp_path, test)
    assert not caplog.records


def test_what_a_killed_download_left_is_swept_away(tmp_path):
    left, fresh = tmp_path / ".GeoLite2-City.old.part", tmp_path / ".GeoLite2-City.new.part"
    left.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(left, (1, 1))

    async def test(maxmind, fetch):
        assert await fetch()

    visit(tmp_path, test)
    assert not left.exists()
    assert fresh.exists()


# ---------------------------------------------------------------------------------------------------------------------
# Refreshing


class Lease:
    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self) -> bool:
        self.asked += 1
        return self.answers.pop(0) if self.answers else True


def test_refresh_downloads_at_start_and_tells_the_reader(tmp_path):
    target = tmp_path / "GeoLite2-City.mmdb"
    reader = LocationReader(target)
    assert not reader.open()

    async def test(maxmind, fetch):
        refresh = GeoRefresh(fetch, target, Lease(), reader.check)
        refresh.start()
        await until(lambda: reader.available)
        await refresh.stop()
        assert reader.lookup("81.2.69.160") == LONDON
        assert refresh.error is None
        assert refresh.checked_at is not None

    visit(tmp_path, test)


def test_refresh_comes_back_after_errors(tmp_path, caplog):
    target = tmp_path / "GeoLite2-City.mmdb"

    async def test(maxmind, fetch):
        maxmind.failures = [500, 429]
        refresh = GeoRefresh(fetch, target, Lease(), retry_seconds=0.01)
        refresh.start()
        await until(target.exists)
        await until(lambda: refresh.error is None)
        await refresh.stop()

    visit(tmp_path, test)
    assert [record.levelname for record in caplog.records].count("WARNING") == 2
    assert KEY not in caplog.text


def test_refresh_waits_for_its_turn_and_leaves_a_fresh_file_alone(tmp_path):
    target, lease = tmp_path / "GeoLite2-City.mmdb", Lease(False, True)

    async def test(maxmind, fetch):
        refresh = GeoRefresh(fetch, target, lease)
        assert await refresh.refresh() == 900.0
        assert not maxmind.requests
        assert await refresh.refresh() == 24 * 3600.0
        asked = len(maxmind.requests)
        other = GeoRefresh(fetch, target, lease)
        assert 24 * 3600.0 - 60 < await other.refresh() <= 24 * 3600.0
        assert len(maxmind.requests) == asked
        assert lease.asked == 2

    visit(tmp_path, test)


def test_refresh_asks_again_when_a_day_has_passed(tmp_path):
    target = tmp_path / "GeoLite2-City.mmdb"

    async def test(maxmind, fetch):
        refresh = GeoRefresh(fetch, target, Lease(), refresh_seconds=0.05)
        refresh.start()
        await until(lambda: len(maxmind.requests) >= 4)  # archive, checksum, and two times "not modified"
        await refresh.stop()
        assert target.read_bytes() == CONTENT

    visit(tmp_path, test)


def test_refresh_survives_a_lease_that_fails(tmp_path):
    target, answers = tmp_path / "GeoLite2-City.mmdb", [RuntimeError("store is away")]

    async def lease() -> bool:
        if answers:
            raise answers.pop()
        return True

    async def test(maxmind, fetch):
        refresh = GeoRefresh(fetch, target, lease, retry_seconds=0.01)
        refresh.start()
        await until(target.exists)
        await refresh.stop()

    visit(tmp_path, test)
