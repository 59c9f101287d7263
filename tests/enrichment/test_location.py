import asyncio
import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import maxminddb
import orjson
import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.enrichment.location_download import LARGEST_ARCHIVE_BYTES, GeoRefresh, download
from tornado_gateway.errors import ConfigError, LocationError
from tornado_gateway.upstream.curl import CurlPool

DATABASES = Path(__file__).parents[1] / "data" / "geoip"
CITY = DATABASES / "GeoLite2-City-Test.mmdb"
GEOIP2_CITY = DATABASES / "GeoIP2-City-Test.mmdb"
COUNTRY = DATABASES / "GeoLite2-Country-Test.mmdb"
BROKEN = sorted((DATABASES / "broken").glob("*.mmdb"))

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


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    path = tmp_path / "watched.mmdb"
    path.write_bytes(CITY.read_bytes())
    return path


@pytest.fixture
def location(watched: Path) -> LocationReader:
    reader = LocationReader(watched)
    assert reader.open()
    return reader


# ---------------------------------------------------------------------------------------------------------------------
# Lookups

KNOWN = {
    "81.2.69.160": LONDON,
    "2.125.160.216": {"country": "United Kingdom", "region": "England", "city": "Boxford"},
    "89.160.20.112": {"country": "Sweden", "region": "Östergötland County", "city": "Linköping"},
    "216.160.83.56": {"country": "United States", "region": "Washington", "city": "Milton"},
    "2001:218::": {"country": "Japan"},
    "::ffff:81.2.69.160": LONDON,
    "2001:0218:0000:0000:0000:0000:0000:0001": {"country": "Japan"},
}
UNKNOWN = [
    "10.0.0.1",
    "127.0.0.1",
    "192.168.1.1",
    "0.0.0.0",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "",
    " ",
    " 81.2.69.160",
    "81.2.69.160\n",
    "81.2.69",
    "81.2.69.160.1",
    "081.2.69.160",
    "0x51.2.69.160",
    "1359070624",
    "81.2.69.256",
    "81.2.69.160:443",
    "[2001:218::]",
    "2001:218::%eth0",
    "2001:218::g",
    "localhost",
    "undefined",
    "\0",
    "81.2.69.160\0",
    "\ud800",
    "８１.2.69.160",
    "1" * 1_000_000,
]


@pytest.mark.parametrize(("ip", "expected"), KNOWN.items(), ids=KNOWN)
def test_known_addresses(location, ip, expected):
    assert location.lookup(ip) == expected
    assert orjson.loads(location.encoded(ip)) == expected


@pytest.mark.parametrize("ip", UNKNOWN, ids=lambda ip: ascii(ip[:24]))
def test_unknown_and_invalid_addresses_are_nowhere(location, ip):
    assert location.lookup(ip) == {}
    assert location.encoded(ip) == b"{}"
    assert location.corrupt == 0


def test_recent_answers_are_remembered(location):
    assert location.lookup("81.2.69.160") is location.lookup("81.2.69.160")
    assert location.encoded("81.2.69.160") is location.encoded("81.2.69.160")


def test_neighbours_in_a_network_are_looked_up_once(location):
    assert location.lookup("175.16.199.1") is location.lookup("175.16.199.254")
    assert (location.hits, location.misses) == (1, 1)
    assert location.lookup("not an address") == {}
    assert (location.hits, location.misses) == (1, 1)


def test_an_answer_never_reaches_beyond_its_network():
    reader = LocationReader(GEOIP2_CITY)
    assert reader.open()
    with maxminddb.open_database(GEOIP2_CITY) as database:
        ends = [end for network, _ in database for end in (network[0], network[-1])]
        assert len(ends) > 400
        for address in [near for end in ends for near in (end, end - 1, end + 1) if int(end) > 0]:
            record: Any = database.get(address) or {}
            country = record.get("country") or record.get("registered_country") or {}
            city = record.get("city") or {}
            found = reader.lookup(str(address))
            names = country.get("names", {}).get("en"), city.get("names", {}).get("en")
            assert (found.get("country"), found.get("city")) == names, address
    assert reader.hits > 100


def test_only_so_many_networks_are_remembered():
    reader = LocationReader(CITY, cache_size=3)
    assert reader.open()
    for ip in ("9.0.0.1", "9.0.1.1", "81.2.69.160"):
        reader.lookup(ip)
    assert (reader.lookup("9.0.1.2"), reader.misses) == ({}, 3)
    assert (reader.lookup("81.2.69.142"), reader.misses) == (LONDON, 4)  # in a network of its own two addresses
    assert (reader.lookup("9.0.1.2"), reader.misses) == ({}, 5)


def test_what_the_database_is(location):
    assert location.available
    assert location.database_type == "GeoLite2-City"
    assert location.build_epoch is not None
    assert location.age_seconds(location.build_epoch + 90.0) == 90.0
    assert location.error is None


def test_a_country_database_knows_only_the_country():
    reader = LocationReader(COUNTRY)
    assert reader.open()
    assert reader.lookup("81.2.69.160") == {"country": "United Kingdom"}


def test_without_a_path_nothing_is_known():
    reader = LocationReader(None)
    assert not reader.open()
    assert not reader.check()
    assert not reader.available
    assert (reader.database_type, reader.build_epoch, reader.age_seconds(1.0)) == (None, None, None)
    assert (reader.lookup("81.2.69.160"), reader.encoded("81.2.69.160")) == ({}, b"{}")


def test_after_close_nothing_is_known(location):
    location.close()
    assert location.lookup("81.2.69.160") == {}
    assert not location.available


# ---------------------------------------------------------------------------------------------------------------------
# Other spellings


def test_overrides_replace_names(tmp_path):
    overrides = tmp_path / "places.json"
    overrides.write_text(
        json.dumps(
            {"country": {"United Kingdom": "UK"}, "region": {"England": "Engl."}, "city": {"Linköping": "Linkoping"}}
        )
    )
    reader = LocationReader(CITY, overrides)
    assert reader.open()
    assert reader.lookup("81.2.69.160") == {"country": "UK", "region": "Engl.", "city": "London"}
    assert reader.lookup("89.160.20.112")["city"] == "Linkoping"


def test_overrides_of_one_section(tmp_path):
    overrides = tmp_path / "places.json"
    overrides.write_text('{"country":{"United Kingdom":"Great Britain"}}')
    reader = LocationReader(CITY, overrides)
    assert reader.open()
    assert reader.lookup("81.2.69.160") == LONDON | {"country": "Great Britain"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("nothing", "got no valid JSON"),
        ("[]", "expected an object with some of the keys country, region, city, got []"),
        ('{"countries":{}}', "countries: expected one of country, region, city"),
        ('{"city":{"London":5}}', "city.London: expected a text that is not empty, got 5"),
    ],
)
def test_broken_overrides_are_refused(tmp_path, content, problem):
    overrides = tmp_path / "places.json"
    overrides.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(f"{overrides}: ")) as raised:
        LocationReader(CITY, overrides)
    assert problem in str(raised.value)


# ---------------------------------------------------------------------------------------------------------------------
# Databases that cannot be used


@pytest.mark.parametrize("broken", BROKEN, ids=lambda path: path.stem)
def test_a_broken_database_is_refused_and_the_old_one_stays(location, watched, broken):
    with pytest.raises(LocationError, match=re.escape(f"{broken}: ")) as raised:
        location.swap(broken)
    assert location.error == str(raised.value)
    assert location.lookup("81.2.69.160") == LONDON
    assert location.path == watched


def city_database(broken: Path) -> bytes:
    """The broken database under a type that is accepted, so that its content decides."""
    return broken.read_bytes().replace(b"database_typeDTest", b"database_typeDCity")


@pytest.mark.parametrize(
    "broken", [path for path in BROKEN if b"DTest" in path.read_bytes()], ids=lambda path: path.stem
)
def test_a_broken_database_is_refused_whatever_its_type(tmp_path, broken):
    path = tmp_path / "city.mmdb"
    path.write_bytes(city_database(broken))
    with pytest.raises(LocationError, match=r"corrupt|no record") as raised:
        LocationReader(None).swap(path)
    assert "database_type" not in str(raised.value)


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


@pytest.mark.parametrize(("content", "problem"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_file_is_refused(location, watched, content, problem):
    replace(watched, content)
    assert not location.check()
    assert location.error is not None
    assert location.error.startswith(f"{watched}: ")
    assert re.search(problem, location.error)
    assert location.lookup("81.2.69.160") == LONDON


def test_paths_that_are_no_file_are_refused(tmp_path):
    reader = LocationReader(tmp_path)
    assert not reader.open()
    assert reader.error == f"{tmp_path}: not a file"
    os.mkfifo(tmp_path / "pipe.mmdb")
    with pytest.raises(LocationError, match="not a file"):
        reader.swap(tmp_path / "pipe.mmdb")


DAMAGE = """
import random, sys
from pathlib import Path
from tornado_gateway.errors import LocationError
from tornado_gateway.enrichment.location import LocationReader

good, directory = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
chance = random.Random(7)
reader, path, used = LocationReader(None), directory / "damaged.mmdb", 0
for _ in range(int(sys.argv[3])):
    content = bytearray(good)
    for _ in range(chance.choice((1, 3, 20))):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)
    try:
        reader.swap(path)
    except LocationError:
        continue
    used += 1
    for _ in range(300):
        reader.lookup(".".join(str(chance.randrange(256)) for _ in range(4)))
    for third in range(60, 80):
        reader.lookup(f"81.2.{third}.160")
print("survived", used)
"""


def run_python(code: str, *arguments: object) -> str:
    """Run code that could take a process down in one of its own."""
    process = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, f"the process ended with {process.returncode}: {process.stderr[-3000:]}"
    return process.stdout


def test_damaged_databases_do_not_take_the_process_down(tmp_path):
    assert "survived" in run_python(DAMAGE, CITY, tmp_path, 120)


# ---------------------------------------------------------------------------------------------------------------------
# Swapping


def test_swap_replaces_database_and_remembered_answers(location):
    assert location.lookup("81.2.69.160") == LONDON
    location.swap(COUNTRY)
    assert location.lookup("81.2.69.160") == {"country": "United Kingdom"}
    assert location.encoded("81.2.69.160") == b'{"country":"United Kingdom"}'
    assert location.database_type == "GeoLite2-Country"
    assert location.path == COUNTRY


def test_check_reloads_only_what_has_changed(location, watched):
    assert not location.check()
    replace(watched, COUNTRY.read_bytes())
    assert location.check()
    assert location.database_type == "GeoLite2-Country"
    assert not location.check()
    overwrite(watched, CONTENT)
    assert location.check()
    assert location.database_type == "GeoLite2-City"


def test_a_refused_file_is_read_again_only_when_it_changes(location, watched, caplog):
    overwrite(watched, CONTENT[:MIDDLE])
    for _ in range(3):
        assert not location.check()
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    overwrite(watched, CONTENT)
    assert location.check()
    assert location.error is None


def test_a_database_that_appears_later_is_used(tmp_path):
    path = tmp_path / "later.mmdb"
    reader = LocationReader(path)
    assert not reader.open()
    assert reader.error == f"{path}: No such file or directory"
    assert not reader.check()
    path.write_bytes(CONTENT)
    assert reader.check()
    assert reader.lookup("81.2.69.160") == LONDON


def test_a_database_that_disappears_stays_in_use(location, watched):
    watched.unlink()
    assert not location.check()
    assert location.lookup("81.2.69.160") == LONDON
    assert location.error == f"{watched}: No such file or directory"


def test_overwriting_the_watched_file_changes_nothing_before_the_check(location, watched):
    overwrite(watched, b"\0" * 100)
    assert location.lookup("2.125.160.216")["city"] == "Boxford"
    assert location.lookup("89.160.20.112")["city"] == "Linköping"
    assert location.corrupt == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_old_database_is_unmapped(watched, tmp_path):
    directory = tmp_path / "copies"

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(f"{directory}/")

    reader = LocationReader(watched, copy_directory=directory)
    reader.open()
    for _ in range(5):
        reader.reload()
    assert mapped() == 1
    reader.close()
    assert mapped() == 0


def test_workers_with_one_directory_share_one_copy(watched, tmp_path):
    directory = tmp_path / "copies"
    readers = [LocationReader(watched, copy_directory=directory) for _ in range(3)]
    assert all(reader.open() for reader in readers)
    (first,) = directory.iterdir()
    replace(watched, COUNTRY.read_bytes())
    assert readers[0].check()
    (second,) = directory.iterdir()
    assert second != first
    assert readers[2].lookup("2.125.160.216")["city"] == "Boxford"  # its copy has no name any more
    assert readers[2].check()
    assert readers[2].lookup("2.125.160.216") == {"country": "United Kingdom"}
    assert list(directory.iterdir()) == [second]


def test_a_copy_that_was_cut_off_is_made_again(watched, tmp_path):
    directory = tmp_path / "copies"
    assert LocationReader(watched, copy_directory=directory).open()
    (copy,) = directory.iterdir()
    replace(copy, CONTENT[:MIDDLE])
    reader = LocationReader(watched, copy_directory=directory)
    assert reader.open()
    assert reader.lookup("81.2.69.160") == LONDON


def test_a_directory_that_cannot_be_written_is_told_and_tried_again(watched, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a directory")
    reader = LocationReader(watched, copy_directory=blocked)
    assert not reader.open()
    assert reader.error is not None
    assert reader.error.startswith(f"{watched}: ")
    blocked.unlink()
    assert reader.check()


def test_the_watch_reloads_and_ends(location, watched):
    async def run() -> None:
        location.start(check_seconds=0.01)
        replace(watched, COUNTRY.read_bytes())
        await until(lambda: location.database_type == "GeoLite2-Country")
        location.stop()
        replace(watched, CONTENT)
        await asyncio.sleep(0.1)
        assert location.database_type == "GeoLite2-Country"

    asyncio.run(run())


SWAP_UNDER_LOAD = """
import os, sys, threading, time
from pathlib import Path
from tornado_gateway.enrichment.location import LocationReader

city, country, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes(), Path(sys.argv[3])
path.write_bytes(city)
sys.setswitchinterval(0.0002)
reader = LocationReader(path, cache_size=4, copy_directory=path.parent / "copies")
assert reader.open()
ending, wrong, counts = threading.Event(), [], [0, 0]
known = [("81.2.69.160", "United Kingdom"), ("89.160.20.112", "Sweden"), ("216.160.83.56", "United States"),
         ("2001:218::", "Japan"), ("2.125.160.216", "United Kingdom"), ("81.2.69.142", "United Kingdom")]

def look(number):
    while not ending.is_set():
        for ip, name in known:
            found = reader.lookup(ip)
            counts[number] += 1
            if found.get("country") != name:
                wrong.append((ip, found))

threads = [threading.Thread(target=look, args=[number], daemon=True) for number in range(len(counts))]
for thread in threads:
    thread.start()
swaps, turn = 0, 0
while swaps < 20 or min(counts) < 1000:         # however long that takes; the test has a deadline
    turn += 1
    content = (city, country, city[: len(city) // 3], b"")[turn % 4]
    if turn % 3:
        with path.open("r+b") as file:      # in place, as cp does: cut to nothing, then written
            file.truncate()
            swaps += reader.check()
            file.write(content)
    else:
        part = path.with_suffix(".new")
        part.write_bytes(content)
        os.replace(part, path)
    swaps += reader.check()
ending.set()
for thread in threads:
    thread.join()
assert not wrong, wrong[:5]
assert reader.corrupt == 0, reader.corrupt
print("swaps", swaps, "lookups", sum(counts))
"""


def test_swaps_under_load_lose_no_lookup_and_no_process(tmp_path):
    assert "swaps" in run_python(SWAP_UNDER_LOAD, CITY, COUNTRY, tmp_path / "watched.mmdb")


# ---------------------------------------------------------------------------------------------------------------------
# Downloading, from a stand-in for MaxMind on loopback

KEY = "licence-key-that-nobody-may-see"
USER = 4711
FOLDER = "GeoLite2-City_20260204"


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.01)


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
        await asyncio.sleep(0.2)
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
    403: r"MAXMIND_USER_ID may not download GeoLite2-City",
    404: r"answered with status 404 for GeoLite2-City",
    429: r"the account's download limit is reached \(status 429\); it asks to wait 3600 s",
    500: r"answered with status 500",
    304: r"answered with status 304",
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
        await asyncio.sleep(0.4)  # the rest arrives
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
