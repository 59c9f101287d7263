"""What is written from the table of options, and what holds the documents to it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tornado_gateway import config
from tornado_gateway.config import OPTIONS, render
from tornado_gateway.errors import ConfigError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ACCOUNT = {"ACCOUNT_ID": "123456", "SDK_KEY": "0123456789abcdef"}


def test_described() -> None:
    rows = {row.name: row for row in config.described(config.load({"--polling-time": "1500"}, ACCOUNT))}
    assert list(rows) == [option.name for option in OPTIONS]
    assert rows["POLLING_TIME"][:4] == ("POLLING_TIME", "1500", "flag", "60000")
    assert rows["SDK_KEY"][:4] == ("SDK_KEY", "****cdef", "environment", "")
    assert rows["COLLECT_URL"][:4] == ("COLLECT_URL", "https://dev.visualwebsiteoptimizer.com", "default", "")
    assert rows["REDIS_HOST"][:4] == ("REDIS_HOST", "", "default", "")


def test_described_lists_can_be_read_again() -> None:
    given = {"REDIS_SENTINELS": "a:1,[::1]:2", "REDIS_SENTINEL_MASTER": "m", "TRUSTED_PROXIES": "10.0.0.0/8,::1/128"}
    rows = {row.name: row.value for row in config.described(config.load({}, ACCOUNT | given))}
    assert {name: rows[name] for name in given} == given


def test_env_file_is_rendered_from_the_table() -> None:
    hint = "run: python -m tornado_gateway.config conf/gateway.env"
    assert (ROOT / "conf/gateway.env").read_text(encoding="utf-8") == render.render_env_file(), hint


def test_tables_of_the_document_are_rendered_from_the_table() -> None:
    document = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert document == render.with_tables(document), "run: python -m tornado_gateway.config docs/configuration.md"


def test_renderer_replaces_only_what_it_renders() -> None:
    document = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    Path("gateway.env").write_text("old")
    Path("doc.md").write_text(document.replace("| `PORT` |", "| `PROT` |").replace("# Configuration", "# Prose"))
    command = [sys.executable, "-m", "tornado_gateway.config", "gateway.env", "doc.md"]
    subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, check=True)
    assert Path("gateway.env").read_text() == (ROOT / "conf/gateway.env").read_text()
    assert Path("doc.md").read_text() == document.replace("# Configuration", "# Prose")


def test_renderer_needs_the_markers() -> None:
    with pytest.raises(ValueError, match="options"):
        render.with_tables("# Configuration\n")


def test_usage_of_the_renderer() -> None:
    done = subprocess.run([sys.executable, "-m", "tornado_gateway.config"], cwd=ROOT, capture_output=True, text=True)
    usage = "usage: python -m tornado_gateway.config conf/gateway.env docs/configuration.md\n"
    assert (done.returncode, done.stderr) == (1, usage)


def test_env_file_as_rendered_changes_nothing() -> None:
    loaded = config.load({}, ACCOUNT, ROOT / "conf" / "gateway.env")
    assert loaded == config.load({}, ACCOUNT)
    assert set(loaded.sources) == set(ACCOUNT)


def test_env_file_with_all_lines_taken_in_has_the_defaults() -> None:
    text = re.sub(r"^#(?=[A-Z0-9_]+=)", "", render.render_env_file(), flags=re.MULTILINE)
    Path("all.env").write_text(text, encoding="utf-8")
    loaded = config.load({}, ACCOUNT, Path("all.env"))
    assert loaded == config.load({}, ACCOUNT)
    assert set(loaded.sources) == set(ACCOUNT) | {o.name for o in OPTIONS if o.default}


def test_every_option_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for option in OPTIONS:
        assert f"| `{option.name}` | `{option.flag}` |" in text
        assert (f"`{option.file_name}`" in text) == option.secret


def blocks_of_the_documentation() -> list[str]:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    return re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_env_file_of_the_documentation() -> None:
    [example] = [block for block in blocks_of_the_documentation() if block.startswith("# a comment")]
    Path("key").write_text(ACCOUNT["SDK_KEY"])
    Path("example.env").write_text(example.replace("/run/secrets/sdk_key", "./key"), encoding="utf-8")
    loaded = config.load({}, {}, Path("example.env"))
    assert (loaded.account_id, loaded.sdk_key, loaded.log_level) == (123456, ACCOUNT["SDK_KEY"], "INFO")


def test_errors_of_the_documentation() -> None:
    Path("gateway.env").write_text("\n\nPOLLING_TIM=1\n")
    environ = ACCOUNT | {"REDIS_PORT": "redis", "MAX_EVENTS_PER_REQUEST": "500"}
    with pytest.raises(ConfigError) as caught:
        config.load({"--events-per-request": "600"}, environ, Path("gateway.env"))
    assert f"{caught.value}\n" == blocks_of_the_documentation()[-1]
