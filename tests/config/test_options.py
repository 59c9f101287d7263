"""Configuration: cases under data/config/, and what holds the documents to the table."""

import argparse
import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from tornado_gateway import config
from tornado_gateway.config import OPTIONS, Config
from tornado_gateway.config.options import NAMES
from tornado_gateway.config.sources.flags import COMMON
from tornado_gateway.enrichment.location_download import EDITION
from tornado_gateway.errors import ConfigError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ACCOUNT = {"ACCOUNT_ID": "123456", "SDK_KEY": "0123456789abcdef"}
SECRETS = {option.name: f"hush-{option.name.lower()}-1234" for option in OPTIONS if option.secret}


def cases(name: str) -> Any:
    rows = json.loads((ROOT / "tests" / "data" / "config" / name).read_text(encoding="utf-8"))
    return pytest.mark.parametrize("case", [pytest.param(row, id=row["id"]) for row in rows])


def load(case: dict[str, Any]) -> Config:
    for name, text in case.get("files", {}).items():
        Path(name).write_text(text, encoding="utf-8", newline="")
    env_file = None
    if "env_file" in case:
        env_file = Path("gateway.env")
        env_file.write_text("\n".join(case["env_file"]), encoding="utf-8", newline="")
    return config.load(case.get("flags", {}), case.get("environ", {}), env_file)


def as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


# --- Reading ---


@cases("valid.json")
def test_valid(case: dict[str, Any]) -> None:
    loaded = load(case)
    values = {name: as_json(getattr(loaded, name)) for name in case["expect"]}
    assert values == case["expect"]
    assert {name: type(value) for name, value in values.items()} == {n: type(v) for n, v in case["expect"].items()}
    for name, source in case.get("sources", {}).items():
        assert loaded.source(name) == source


@cases("invalid.json")
def test_invalid(case: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(case)
    assert list(caught.value.problems) == case["problems"]
    assert str(caught.value) == "\n".join(case["problems"])


def test_env_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError) as caught:
        config.load({}, {}, Path("none.env"))
    assert caught.value.problems == (
        '--env-file (flag): expected a text file that can be read, got "none.env" (No such file or directory)',
    )


def test_env_file_that_is_not_text() -> None:
    Path("gateway.env").write_bytes(b"SDK_KEY=hush\xff")
    with pytest.raises(ConfigError) as caught:
        config.load({}, ACCOUNT, Path("gateway.env"))
    assert caught.value.problems == (
        '--env-file (flag): expected a text file that can be read, got "gateway.env" (not UTF-8)',
    )


def test_secret_file_that_is_not_text() -> None:
    Path("key").write_bytes(b"hush\xff")
    with pytest.raises(ConfigError) as caught:
        config.load({"--sdk-key-file": "./key"}, {"ACCOUNT_ID": "1"})
    assert caught.value.problems == (
        'SDK_KEY_FILE (flag): expected a text file that can be read, got "./key" (not UTF-8)',
    )


def test_nothing_else_reads_the_environment() -> None:
    # Others read what the terminal and systemd say of themselves, which are no options, or have code of applications.
    exceptions = ("main.py", "__main__.py", "output.py", "systemd.py", "sdks.py")
    modules = [path for path in (ROOT / "tornado_gateway").rglob("*.py") if path.name not in exceptions]
    readers = [str(path.name) for path in modules if re.search(r"os\.(environ|getenv)", path.read_text("utf-8"))]
    assert readers == []


# --- The table ---


def test_every_field_is_an_option() -> None:
    others = ("sources", "misspelt", "service_links", "environment_name")
    attributes = [f.name for f in dataclasses.fields(Config) if f.name not in others]
    assert [option.attribute for option in OPTIONS] == attributes
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


def test_attributes_are_the_names_unless_a_unit_had_to_be_added() -> None:
    renamed = {o.name: o.attribute for o in OPTIONS if o.attribute != o.name.lower()}
    assert renamed == {
        "POLLING_TIME": "poll_seconds",
        "FLUSH_EVENTS_INTERVAL": "flush_seconds",
        "SOCKET_TIMEOUT": "socket_timeout_seconds",
    }


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.default], ids=lambda option: option.name)
def test_default_is_shown_as_it_is_written(option: config.Option) -> None:
    default = option.default.removeprefix("./") if option.name == "DATA_DIR" else option.default
    assert option.shown(getattr(Config(), option.attribute)) == default


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_help_is_a_sentence(option: config.Option) -> None:
    assert option.help.endswith(".")
    assert option.help[0].isupper() or option.help.startswith("auto")


def test_config_is_frozen_and_can_be_sent_to_another_process() -> None:
    loaded = config.load({}, ACCOUNT)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.port = 1  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    assert hash(loaded) == hash(config.load(ACCOUNT, {}))
    assert dataclasses.replace(loaded, port=9).port == 9


def test_account_is_empty_when_offline() -> None:
    assert config.load({}, ACCOUNT).account == ("123456", "0123456789abcdef")
    assert Config().account == ("", "")


def test_location_database() -> None:
    downloaded = Config().data_dir / f"{EDITION}.mmdb"
    assert Config().downloaded_location_database == downloaded
    assert Config().location_database is None
    assert Config(maxmind_license_key="key").location_database == downloaded
    assert Config(maxmind_license_key="key", maxmind_db_path=Path("x")).location_database == Path("x")


def test_redis_is_used_with_a_host_or_with_sentinels() -> None:
    assert not Config().uses_redis
    assert Config(redis_host="redis").uses_redis
    assert Config(redis_sentinels=(("sentinel", 26379),)).uses_redis


# --- Secrets ---


@pytest.mark.parametrize(
    ("secret", "shown"),
    [("", "****"), ("a", "****"), ("1234567", "****"), ("12345678", "****5678"), ("0123456789abcdef", "****cdef")],
)
def test_mask(secret: str, shown: str) -> None:
    assert config.mask(secret) == shown


def test_secrets_are_those_that_we_think_of() -> None:
    assert set(SECRETS) == {
        "SDK_KEY",
        "REDIS_PASSWORD",
        "MAXMIND_LICENSE_KEY",
        "WEBHOOK_TOKEN",
        "ADMIN_TOKEN",
        "CLIENT_TOKENS",
    }


def test_secrets_are_not_shown() -> None:
    loaded = config.load({}, {"ACCOUNT_ID": "1", "MAXMIND_USER_ID": "1", "REDIS_HOST": "redis", **SECRETS})
    seen = f"{loaded!r} {loaded!s} {loaded} {config.described(loaded)} {loaded.sources}"
    assert [secret for secret in SECRETS.values() if secret in seen] == []
    assert "hush" not in seen
    assert seen.count("****1234") == 4 * len(SECRETS)
    assert "sdk_key='****1234'" in repr(loaded)


def test_secrets_are_not_in_errors() -> None:
    broken = {name: f"{secret}\x01{secret}" for name, secret in SECRETS.items()}
    Path("gateway.env").write_text("".join(f"{name}=hush '{secret}\n" for name, secret in SECRETS.items()))
    with pytest.raises(ConfigError) as caught:
        config.load({"--sdk-kee": "hush"}, broken, Path("gateway.env"))
    assert len(caught.value.problems) >= len(SECRETS)
    assert "hush" not in f"{caught.value} {caught.value!r}"
    assert caught.value.__context__ is None


def test_repr_has_what_differs_from_the_default() -> None:
    loaded = config.load({"--polling-time": "1500"}, ACCOUNT)
    assert repr(loaded) == "Config(account_id='123456', sdk_key='****cdef', poll_seconds='1500')"


# --- Flags ---


def parse(*argv: str) -> dict[str, str]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    config.add_flags(parser)
    namespace, rest = parser.parse_known_args(argv)
    return config.given_flags(namespace, rest)


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        pytest.param([], {}, id="none"),
        pytest.param(["--port", "9000"], {"PORT": "9000"}, id="a value after a blank"),
        pytest.param(["--port=9000"], {"PORT": "9000"}, id="a value after an equals sign"),
        pytest.param(["--redis-enable-tls", "--port=1"], {"REDIS_ENABLE_TLS": "true", "PORT": "1"}, id="boolean alone"),
        pytest.param(["--redis-enable-tls", "no"], {"REDIS_ENABLE_TLS": "no"}, id="boolean with a value"),
        pytest.param(["--sdk-key-file", "key"], {"SDK_KEY_FILE": "key"}, id="the file of a secret"),
        pytest.param(
            ["--sdkkey", "hush", "--x=hush"], {"--sdkkey": "", "--x": ""}, id="unknown flags lose their value"
        ),
        pytest.param(["--x=1", "stray"], {"--x": "", "stray": ""}, id="a stray word"),
        pytest.param(["--env-file", "gateway.env"], {}, id="the env file is not an option"),
    ],
)
def test_flags(argv: list[str], given: dict[str, str]) -> None:
    assert parse(*argv) == given


def help_of(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(argv)
    return capsys.readouterr().out


def test_every_option_has_a_flag_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("--help-all", capsys=capsys)
    assert [o.flag for o in OPTIONS if f"{o.flag} " not in text] == []
    assert "--env-file PATH" in text
    for shown in ("--polling-time MS", "[60000 ms]", "--store-sync {normal,full}", "--redis-cluster [{true,false}]"):
        assert shown in " ".join(text.split())


def test_help_has_the_common_options_only(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("--help", capsys=capsys)
    shown = {o.name for o in OPTIONS if f"{o.flag} " in text}
    secret_files = {o.file_name for o in OPTIONS if o.file_name in COMMON}
    assert shown == COMMON - secret_files
    assert "--help-all" in text
    assert len(text.splitlines()) < 130
    assert max(map(len, text.splitlines())) <= 80


# --- Variables that are nearly options ---


def ignored(*names: str, **environ: str) -> Config:
    return config.load({}, ACCOUNT | dict.fromkeys(names, "value") | environ)


def ignored_only(*names: str) -> tuple[str, ...]:
    """Return the misspelt variables of a gateway with no option at all."""
    return config.load({}, dict.fromkeys(names, "value"), with_account=False).misspelt


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("LOGLEVEL", "LOG_LEVEL"),
        ("log_level", "LOG_LEVEL"),
        ("POLL_TIME", "POLLING_TIME"),
        ("POLLING_TIM", "POLLING_TIME"),
        ("POLLING_INTERVAL", "POLLING_TIME"),
        ("REDIS_PASS", "REDIS_PASSWORD"),
        ("REDIS_USER", "REDIS_USERNAME"),
        ("REDIS_SENTINEL", "REDIS_SENTINELS"),
        ("ADMIN_TOKNE", "ADMIN_TOKEN"),
        ("SETTNGS_FILE", "SETTINGS_FILE"),
        ("DECISIONS_REQUIRED", "DECISION_REQUIRED"),
        ("WEBHOOK_TOKENS_FILE", "WEBHOOK_TOKEN_FILE"),
        ("POLLTIME", "POLLING_TIME"),
        ("REDISPASS", "REDIS_PASSWORD"),
        ("REDIS_PASSWORDFILE", "REDIS_PASSWORD_FILE"),
        ("SETTING_FILE", "SETTINGS_FILE"),
        ("ENVIRONMENT_FILE", "ENVIRONMENTS_FILE"),
        ("WORKER", "WORKERS"),
        ("ACCOUNT", "ACCOUNT_ID"),
        ("SETTINGS", "SETTINGS_FILE"),
        ("KEEP_ALIVE", "KEEP_ALIVE_SECONDS"),
        ("TLS_CERT", "TLS_CERT_PATH"),
        ("TORNADO_GATEWAY_PORT", "PORT"),
        ("VWO_SDK_KEY", "SDK_KEY"),
        ("VWO_ACCOUNT", "ACCOUNT_ID"),
    ],
)
def test_misspelt_variables(name: str, option: str) -> None:
    assert ignored_only(name) == (f"{name} (environment): unknown option. Did you mean {option}?",)


def test_names_without_separators_mean_the_option_with_the_same_letters() -> None:
    names = {name.replace("_", ""): name for name in NAMES if "_" in name}
    found = {words.split()[0]: words for words in ignored_only(*names)}
    assert found == {
        near: f"{near} (environment): unknown option. Did you mean {name}?" for near, name in names.items()
    }


def test_misspelt_variables_do_not_count_if_the_option_is_given() -> None:
    assert ignored("SDKKEY", "SDK_KEYS", "ACCOUNTID").misspelt == ()
    assert ignored(SDKKEY="", LOG_LEVEL="INFO", LOGLEVEL="INFO").misspelt == ()


def test_other_variables_are_not_misspelt() -> None:
    names = (ROOT / "tests" / "data" / "config" / "other-variables.txt").read_text().split()
    assert len(names) > 130
    assert ignored_only(*names) == ()


def test_placeholders_of_our_own_examples_are_rejected() -> None:
    texts = [path.read_text() for path in sorted((ROOT / "conf").rglob("*.yaml"))]
    examples = [
        row for text in texts for row in re.findall(r"^ *((?:SDK|ADMIN|WEBHOOK)_\w+): (\S+)$", text, re.MULTILINE)
    ]
    assert {name for name, _ in examples} == {"SDK_KEY", "ADMIN_TOKEN"}
    for name, text in examples:
        with pytest.raises(ConfigError, match=f"{name} .environment.: expected your own value, got the placeholder"):
            config.load({}, ACCOUNT | {name: text})


def test_service_links_named_like_options_are_explained() -> None:
    links = dict.fromkeys(("TORNADO_GATEWAY_PORT", "REDIS_PORT", "SHOP_PORT"), "tcp://10.0.0.1:6379")
    loaded = ignored(**links)
    assert loaded.misspelt == ()
    assert loaded.service_links == (
        "REDIS_PORT is a service link of Kubernetes; its port is used.",
        "TORNADO_GATEWAY_PORT is a service link of Kubernetes and has no effect.",
    )


# --- The sample account ---


def test_sample_account_hangs_together() -> None:
    document = json.loads((ROOT / "conf" / "sample-settings.json").read_text(encoding="utf-8"))
    campaigns = {campaign["id"]: campaign for campaign in document["campaigns"]}
    rules = [rule for feature in document["features"] for rule in feature["rules"]]
    assert len(campaigns) == len(document["campaigns"])
    assert sorted(rule["campaignId"] for rule in rules) == sorted(campaigns)
    assert all(campaigns[rule["campaignId"]]["type"] == rule["type"] for rule in rules)
    members = {m: int(g) for g, group in document["groups"].items() for m in group["campaigns"]}
    assert members == document["campaignGroups"]
    assert {f["key"] for f in document["features"]} >= {"new-checkout", "free-shipping", "loyalty", "beta-console"}


def test_sample_account_serves_offline() -> None:
    assert config.load({"--settings-file": str(ROOT / "conf" / "sample-settings.json")}, {}).is_offline
