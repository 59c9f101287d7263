"""Each test of the configuration runs in an empty directory: gateway.env is read from the current one."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
