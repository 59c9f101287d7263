"""Row A23: a directory that became read-only costs nothing that is stored, and ends no worker."""

import asyncio
import os
import shutil
import subprocess
import sys

import pytest
from process import ROOT

from tornado_gateway.store.interfaces import NewChunk
from tornado_gateway.store.sqlite.events import SqliteEvents

OPEN_AND_READ = """
import asyncio, sys
from pathlib import Path
from tornado_gateway.store.sqlite.events import SqliteEvents

async def main():
    events = SqliteEvents(Path(sys.argv[1]))
    await events.open()
    print((await events.depth()).waiting)

asyncio.run(main())
"""
# Root may write to any directory unless it gives up this capability.
PREFIX = ["setpriv", "--bounding-set", "-dac_override"] if os.getuid() == 0 else []


async def leave_two_logs(directory):
    """Two logs with an event each, as killed workers leave them: with their WAL."""
    logs = [SqliteEvents(directory), SqliteEvents(directory)]
    for events in logs:
        await events.open()
        await events.append([NewChunk(1, b'{"n":1}')])
    shutil.copytree(directory, directory.with_name("left"))
    for events in logs:
        await events.close()


@pytest.mark.skipif(bool(PREFIX) and not shutil.which("setpriv"), reason="setpriv is not installed")
def test_a23_a_log_that_cannot_be_deleted_does_not_prevent_the_start(tmp_path):
    asyncio.run(leave_two_logs(tmp_path / "data"))
    left = tmp_path / "left"
    left.chmod(0o500)
    try:
        command = [*PREFIX, sys.executable, "-c", OPEN_AND_READ, str(left)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    finally:
        left.chmod(0o700)
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr
    assert "could not be adopted" in result.stderr
