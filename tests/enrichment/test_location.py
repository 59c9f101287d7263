import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import maxminddb
import orjson
import pytest
from location_files import (
    BROKEN,
    CITY,
    CONTENT,
    COUNTRY,
    GEOIP2_CITY,
    LONDON,
    MIDDLE,
    UNUSABLE,
    overwrite,
    replace,
    until,
)

from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.errors import ConfigError, LocationError


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


def test_the_version_changes_with_the_content(tmp_path):
    """Bulk responses got a 304 after the change to a database that was built in the same second."""
    path, other = tmp_path / "one.mmdb", tmp_path / "other.mmdb"
    for file in (path, other):
        replace(file, CONTENT)
    reader, second = LocationReader(path), LocationReader(other)
    assert reader.version == second.version
    assert reader.open()
    assert second.open()
    before = reader.version
    assert before == second.version
    epoch = reader.build_epoch
    replace(path, CONTENT.replace(b"England", b"Anglia!"))
    assert reader.check()
    assert reader.build_epoch == epoch
    assert reader.version != before
