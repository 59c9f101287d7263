"""One open MaxMind database: checking a file before it is opened, and looking addresses up with a cache."""

import hashlib
import random
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntoa, inet_ntop, inet_pton
from typing import Any, NamedTuple

import maxminddb
import orjson

from tornado_gateway.enrichment.words import Words
from tornado_gateway.errors import LocationError

Location = dict[str, str]
EncodedLocation = tuple[Location, bytes]  # the same as JSON

UNKNOWN: EncodedLocation = ({}, b"{}")
# A result is cached for all addresses that share these first bytes, if it holds for all of them.
_IPV4_NETWORK = 3
_IPV6_NETWORK = 8
_WALKED_NETWORKS = 2_000
_PROBED_ADDRESSES = 2_000
_SEPARATOR = bytes(16)
_TYPES = ("City", "Country", "Enterprise")


class LocationDatabase:
    """An open database with its cache of recent results. Both are replaced together.

    A record holds for a network, often for far more than the 256 addresses of a /24. The cache is keyed by /24, so that
    neighbours share an entry. Reading a record, with its names in eight languages, takes 5 µs and more.
    """

    def __init__(self, opened: "Opened", words: Words, cache_size: int) -> None:
        reader = opened.reader
        metadata = reader.metadata()
        self.digest = opened.digest
        self.database_type = metadata.database_type
        self.build_epoch = metadata.build_epoch
        self.asked = self.misses = self.corrupt = 0
        self._lookup = reader.get_with_prefix_len
        self._words = words
        self._cache_size = cache_size
        self._recent: dict[bytes, EncodedLocation] = {}  # by network, or by address if its network is smaller
        self._places: dict[bytes, EncodedLocation] = {}  # the same ones by content: many networks share a place

    def find(self, ip: str) -> EncodedLocation:
        # The C reader alone would accept "0x51.2.69.160" and "81.2".
        try:
            if ":" in ip:
                address = inet_pton(AF_INET6, ip)
                network = address[:_IPV6_NETWORK]
            else:
                address = inet_pton(AF_INET, ip)
                network = address[:_IPV4_NETWORK]
        except (OSError, ValueError):
            return UNKNOWN
        self.asked += 1
        recent = self._recent
        return recent.get(network) or recent.get(address) or self._read(ip, address, network)

    def _read(self, ip: str, address: bytes, network: bytes) -> EncodedLocation:
        self.misses += 1
        found, bits = UNKNOWN, len(address) * 8
        try:
            record, bits = self._lookup(ip)
            if record:
                found = self._shared(_location(record, self._words))
        except ValueError as error:
            # An IPv6 address in an IPv4-only database is a ValueError; undecodable text in a record is one as well.
            self.corrupt += isinstance(error, UnicodeError)
        except Exception:  # a corrupt record can raise anything
            self.corrupt += 1
        if len(self._recent) >= self._cache_size:  # frequent addresses return soon
            self._recent.clear()
            self._places.clear()
        self._recent[network if bits <= len(network) * 8 else address] = found
        return found

    def _shared(self, location: Location) -> EncodedLocation:
        encoded = bytes(memoryview(orjson.dumps(location)))  # orjson's own bytes keep a buffer of 4 KB
        return self._places.setdefault(encoded, (location, encoded))


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


# --- Opening ---


class Opened(NamedTuple):
    """A database and the digest of its file."""

    reader: maxminddb.Reader
    digest: str


def open_checked(file: Path, shown: Path) -> Opened:
    """Open a private copy of a database after reading samples of all of it. Errors name `shown`."""
    try:
        if not file.stat().st_size:
            raise LocationError(f"{shown}: the file is empty")
        # The C reader can crash on corrupt records (a map's key that is no text), so the Python one goes first.
        with maxminddb.open_database(file, maxminddb.MODE_MMAP) as reader:
            metadata = reader.metadata()
            _check_metadata(metadata, shown)
            _check_tree(file, metadata, shown)
            _check_records(reader, metadata.ip_version, shown)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
        return Opened(maxminddb.open_database(file), digest)
    except LocationError:
        raise
    except Exception as error:
        raise LocationError(f"{shown}: not a MaxMind database, or cut off ({_message(error, file)})") from None


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
    # All records of a small database. Walking a large one takes minutes: check its first records and random ones.
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


def _message(error: Exception, file: Path) -> str:
    """Return the library's message without the name of the copy, which is of no use to the operator."""
    return str(error).replace(f" ({file})", "").replace(str(file), "the file") or type(error).__name__
