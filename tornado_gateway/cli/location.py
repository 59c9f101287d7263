"""The commands `geo ...` and `device ...`."""

import argparse
import asyncio
import sys
from pathlib import Path

from tornado_gateway.cli.data_owner import become_owner
from tornado_gateway.cli.output import Progress, print_columns, print_json
from tornado_gateway.config import Config
from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.enrichment.location_download import (
    CONNECT_SECONDS,
    DOWNLOAD_SECONDS,
    LARGEST_ARCHIVE_BYTES,
    download,
)
from tornado_gateway.errors import LocationError
from tornado_gateway.upstream.curl import CurlPool

_MEBIBYTE = 1 << 20


def geo_update(config: Config, arguments: argparse.Namespace) -> int:
    """Download the newest database into DATA_DIR, where a running gateway finds it."""
    if config.maxmind_user_id is None or config.maxmind_license_key is None:
        print("MAXMIND_USER_ID and MAXMIND_LICENSE_KEY are needed to download", file=sys.stderr)
        return 2
    become_owner(config.data_dir)
    config.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        path = asyncio.run(_download(config, config.maxmind_user_id, config.maxmind_license_key))
    except LocationError as error:
        print(error, file=sys.stderr)
        return 1
    target = str(path or config.downloaded_location_database)
    if arguments.json:
        print_json({"updated": path is not None, "path": target})
    else:
        print(f"{target} is {'new' if path else 'the newest already'}")
    return 0


async def _download(config: Config, user_id: int, license_key: str) -> Path | None:
    client = CurlPool(
        connect_seconds=CONNECT_SECONDS,
        timeout_seconds=DOWNLOAD_SECONDS,
        max_response_bytes=LARGEST_ARCHIVE_BYTES,
    )
    progress = Progress("downloading", "MiB", _MEBIBYTE)
    try:
        return await download(
            client, user_id=user_id, license_key=license_key, directory=config.data_dir, progress=progress
        )
    finally:
        progress.close()
        client.close()


def geo_lookup(config: Config, arguments: argparse.Namespace) -> int:
    path = config.maxmind_db_path or config.downloaded_location_database
    reader = LocationReader(path, config.geo_map_file)
    if not reader.open():
        print(reader.error, file=sys.stderr)
        return 1
    return _print_facts(reader.lookup(arguments.ip), arguments, f"nothing is known about {arguments.ip}")


def device_lookup(config: Config, arguments: argparse.Namespace) -> int:
    facts = DeviceReader(map_file=config.ua_map_file).facts(arguments.user_agent)
    return _print_facts(dict(facts), arguments, "nothing is known about this user agent")


def _print_facts(facts: dict[str, str], arguments: argparse.Namespace, otherwise: str) -> int:
    if arguments.json:
        print_json(facts)
    elif facts:
        print_columns(list(facts.items()))
    else:
        print(otherwise)
    return 0 if facts else 1
