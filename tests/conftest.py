"""Says which build the tests in this process are about (scripts/test runs some of them for both), and makes the
compiled one if a test that was selected needs it."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from process import COMPILED, ROOT, is_compiled

from tornado_gateway import version

# The files that take longest, the longest first, so that no process is left alone with one at the end. Most wait.
LONGEST = (
    *("test_console.py", "test_several_environments.py", "test_store.py", "test_supervisor.py", "test_instances.py"),
    *("test_curl.py", "test_restart.py", "test_delivery.py", "test_flusher.py", "test_install.py", "test_scripts.py"),
    *("test_store_redis.py", "test_waiting.py", "test_client_auth.py", "test_server.py", "test_crash.py"),
    *("test_settings.py", "test_unknown.py", "test_polling.py", "test_store_faults.py", "test_mistakes.py"),
    *("test_hostile.py", "test_problems.py", "test_announcements.py", "test_verdict.py", "test_spilled_restart.py"),
    *("test_against_sdk.py", "test_sticky_against_sdk.py"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compile", action="store_true", help="run scripts/compile if a selected test needs its result")


def pytest_configure() -> None:
    # Else the first test with a coroutine makes a second loop, which asyncio.run in a later test drops unclosed.
    asyncio.set_event_loop(None)


def pytest_report_header() -> str:
    if Path(os.environ.get("PYTHONPATH", "/")) == COMPILED:
        assert version.IS_COMPILED, "a compiled build was asked for"
    return f"in this process: {version.BUILD}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        ranks = {name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.compile and any(item.get_closest_marker("compiled") for item in session.items):
        subprocess.run([ROOT / "scripts" / "compile"], check=True)


def pytest_report_collectionfinish() -> str:
    return f"processes of the gateway: {'compiled' if is_compiled() else 'pure Python'}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("compiled") and not is_compiled():
        pytest.skip("there is no current build/compiled: see scripts/compile")
