"""The Lua scripts are files: each is used, valid, and part of an installation."""

import re
import tomllib

import pytest
from process import ROOT
from redis_servers import RedisServer, needs_redis_server

from tornado_gateway.store.redis import lua
from tornado_gateway.store.redis.lua import Script

REDIS = ROOT / "tornado_gateway" / "store" / "redis"
FILES = sorted(path.stem for path in (REDIS / "scripts").iterdir())
SCRIPTS = {name: value for name, value in vars(lua).items() if isinstance(value, Script)}


def test_every_file_is_loaded_and_every_loaded_file_exists():
    source = (REDIS / "lua.py").read_text()
    loaded = {name for call in re.findall(r"= _load\(([^)]*)\)", source) for name in re.findall(r'"(\w+)"', call)}
    assert loaded == set(FILES)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_used(name):
    users = [path for path in REDIS.glob("*.py") if path.name != "lua.py"]
    assert any(re.search(rf"\b{name},", path.read_text().split("logger =", 1)[-1]) for path in users)


@needs_redis_server
def test_redis_knows_every_script_under_its_hash(tmp_path):
    with RedisServer(tmp_path) as server:
        for script in SCRIPTS.values():
            assert server.command("SCRIPT", "LOAD", script.text).decode() == script.sha


def test_the_files_are_data_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["tornado_gateway"]
    packaged = {path.stem for pattern in patterns for path in (ROOT / "tornado_gateway").glob(pattern)}
    assert set(FILES) <= packaged
