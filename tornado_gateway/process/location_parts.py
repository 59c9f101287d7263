"""The location database as parts of a worker: opening, watching and, with a licence key, downloading it."""

import asyncio
import logging
import socket
import time
from functools import partial
from pathlib import Path

from tornado_gateway.config import Config
from tornado_gateway.enrichment.location import LocationReader
from tornado_gateway.enrichment.location_download import (
    CONNECT_SECONDS,
    DOWNLOAD_SECONDS,
    LARGEST_ARCHIVE_BYTES,
    GeoRefresh,
    download,
)
from tornado_gateway.errors import StoreError
from tornado_gateway.process.announcement.problem_lines import report
from tornado_gateway.process.parts import Part
from tornado_gateway.store.interfaces import SHARED, StateStore
from tornado_gateway.tasks import Periodic
from tornado_gateway.telemetry.problems import Problem
from tornado_gateway.upstream.curl import CurlPool

logger = logging.getLogger(__name__)

OLD_DAYS = 30  # MaxMind publishes twice a week
REPORT_SECONDS = 86_400.0


def location_parts(config: Config, state: StateStore, location: LocationReader, owner: str) -> list[Part]:
    daily = Periodic(partial(_report, location), REPORT_SECONDS, jitter=0.1)
    parts = [
        Part("location", partial(_open, location), location.stop),
        Part("location report", daily.start, daily.stop),
    ]
    if config.maxmind_license_key is not None and config.maxmind_user_id is not None and config.maxmind_db_path is None:
        parts.append(_download_part(config, state, location, owner))
    return parts


async def _open(location: LocationReader) -> None:
    await asyncio.to_thread(location.open)  # takes 0.5 s for a full-size database
    _report(location)
    location.start()


def _report(location: LocationReader) -> None:
    """Log a database that is broken or old: at the start and once a day, because locations are wrong meanwhile."""
    problem = location_problem(location)
    if problem is not None:
        report(logger, problem, REPORT_SECONDS / 2)


def location_problem(location: LocationReader) -> Problem | None:
    """Return the problem with the database that is in use, or should be."""
    path = None if location.path is None else str(location.path)
    if location.error is not None:
        is_absent = location.path is not None and not location.path.exists()
        return Problem("geo-absent" if is_absent else "geo-broken", f"Location database: {location.error}", path)
    days = (location.age_seconds(time.time()) or 0.0) / 86_400
    if days <= OLD_DAYS:
        return None
    return Problem("geo-old", f"The location database {path} is {days:.0f} days old", path)


def _download_part(config: Config, state: StateStore, location: LocationReader, owner: str) -> Part:
    """Return the part that downloads the database while this worker holds the lease."""
    client = _new_client()
    user_id, license_key = str(config.maxmind_user_id), str(config.maxmind_license_key)
    fetch = partial(download, client, user_id=user_id, license_key=license_key, directory=config.data_dir)
    lease = partial(_holds_download_lease, state, config.data_dir, owner)
    refresh = GeoRefresh(fetch, config.downloaded_location_database, lease, location.check)

    async def stop() -> None:
        await refresh.stop()
        client.close()

    return Part("location download", refresh.start, stop)


def _new_client() -> CurlPool:
    return CurlPool(
        connect_seconds=CONNECT_SECONDS,
        timeout_seconds=DOWNLOAD_SECONDS,
        max_response_bytes=LARGEST_ARCHIVE_BYTES,
    )


async def _holds_download_lease(state: StateStore, directory: Path, owner: str) -> bool:
    """Return whether this worker downloads for its directory. Each directory has one downloader per machine."""
    try:
        return await state.acquire_lease(f"{SHARED}geoip:{socket.gethostname()}:{directory.resolve()}", owner)
    except StoreError:
        return False
