"""ENVIRONMENTS_FILE: environments as configurations with some options replaced, and every mistake at once."""

import re
from pathlib import Path

import pytest

from tornado_gateway import config
from tornado_gateway.config import Config, EnvironmentConfig, environments, environments_of
from tornado_gateway.errors import ConfigError

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef0123456789abcdef"
PRODUCTION = f"""
[[environment]]
name = "production"
account_id = 123456
sdk_key = "{KEY}"
default = true
"""
STAGING = """
[[environment]]
name = "staging"
account_id = 123456
sdk_key = "fedcba9876543210"
"""
TOKEN = "a-token-of-the-webhook"


def loaded(text: str, **environ: str) -> tuple[EnvironmentConfig, ...]:
    Path("environments.toml").write_text(text, encoding="utf-8")
    return environments_of(config.load({}, {"ENVIRONMENTS_FILE": "environments.toml"} | environ))


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, **environ)
    return list(caught.value.problems)


def test_without_a_file_there_is_one_with_the_configuration_itself() -> None:
    own = Config(account_id=1, sdk_key=KEY)
    (only,) = environments_of(own)
    assert (only.name, only.is_default, only.hosts) == ("default", True, ())
    assert only.config is own
    assert only.sdk_keys == (KEY,)


def test_an_environment_replaces_options_and_keeps_the_others() -> None:
    Path("settings.json").write_text("{}")
    Path("webhook").write_text(TOKEN)
    keys = """
previous_sdk_keys = ["00112233"]
hosts = ["Flags-Staging.example.com", "staging.example.com."]
decision_required = true
cors_allowed_origins = ["https://staging.shop.example", "https://other.example"]
event_queue_limit = 10000
settings_file = "settings.json"
webhook_token_file = "webhook"
upstream_url = "https://up.example"
sticky_decisions = true
aliasing_enabled = true
"""
    production, staging = loaded(
        PRODUCTION + STAGING + keys, EVENTS_PER_REQUEST="7", UPSTREAM_URL="https://all.example"
    )
    assert (production.name, production.is_default) == ("production", True)
    assert (production.config.account.id, production.config.account.sdk_key) == ("123456", KEY)
    assert (production.config.upstream_url, production.config.decision_required) == ("https://all.example", False)
    own = staging.config
    assert staging.sdk_keys == ("fedcba9876543210", "00112233")
    assert staging.hosts == ("flags-staging.example.com", "staging.example.com")
    assert (own.decision_required, own.event_queue_limit, own.events_per_request) == (True, 10_000, 7)
    assert own.cors_allowed_origins == ("https://staging.shop.example", "https://other.example")
    assert own.settings_file == Path("settings.json")
    assert (own.webhook_token, own.sticky_decisions, own.aliasing_enabled) == (TOKEN, True, True)
    assert (own.upstream_url, own.collect_url) == ("https://up.example", "https://up.example")
    assert own.source("UPSTREAM_URL") == "environments.toml, environment staging"
    assert TOKEN in staging.secrets


def test_a_collect_url_of_the_gateway_stays_when_only_the_upstream_url_is_replaced() -> None:
    (only,) = loaded(PRODUCTION + 'upstream_url = "https://up.example"', COLLECT_URL="https://collect.example")
    assert only.config.collect_url == "https://collect.example"


def test_the_namespace_has_the_name_so_that_it_survives_another_key() -> None:
    before = loaded(PRODUCTION + STAGING)
    after = loaded(PRODUCTION + STAGING.replace("fedcba", "abcdef"))
    assert [one.config.namespace for one in before] == ["123456:production", "123456:staging"]
    assert [one.config.namespace for one in after] == ["123456:production", "123456:staging"]


def test_the_only_environment_of_a_file_is_the_default_one() -> None:
    assert [one.is_default for one in loaded(STAGING)] == [True]
    assert [one.is_default for one in loaded(STAGING + PRODUCTION.replace("default = true", ""))] == [False, False]


def test_paths_are_relative_to_the_file() -> None:
    Path("etc").mkdir()
    Path("etc/key").write_text(f"{KEY}\n")
    Path("etc/settings.json").write_text("{}")
    block = '[[environment]]\nname="a"\naccount_id="7"\nsdk_key_file="key"\nsettings_file="settings.json"'
    Path("etc/environments.toml").write_text(block)
    (only,) = environments_of(config.load({}, {"ENVIRONMENTS_FILE": "etc/environments.toml"}))
    assert (only.config.sdk_key, only.config.settings_file) == (KEY, Path("etc/settings.json"))


def test_all_mistakes_are_listed_at_once_with_name_and_key() -> None:
    text = """
surprise = 1
[[environment]]
name = "Production"
account_id = 0
sdk_key = "two words"
[[environment]]
account_id = 1.5
sdk_kye = "x"
[[environment]]
name = "staging"
account_id = 7
sdk_key = "abcdefghijkl"
sdk_key_file = "nowhere/at/all"
hosts = "a.example:80"
default = "maybe"
webhook_token = "short"
settings_file = "none.json"
previous_sdk_keys = ["a,b"]
"""
    third = "environments.toml, environment staging"
    assert problems(text) == [
        "environments.toml: unknown table or key surprise, expected [[environment]] blocks only",
        "name (environments.toml, environment Production): expected lower-case letters, digits and -, at most 32, got"
        ' "Production"',
        'account_id (environments.toml, environment Production): expected a whole number, at least 1, got "0"',
        'sdk_key (environments.toml, environment Production): expected text without blanks, got "****ords"',
        "account_id (environments.toml, environment 2): expected a whole number, at least 1, got another type of value",
        "environments.toml, environment 2: unknown key sdk_kye. Did you mean sdk_key?",
        "name (environments.toml, environment 2): expected a value, got nothing",
        f"previous_sdk_keys ({third}): expected a list of texts without blanks, got another type of value",
        f"sdk_key_file ({third}): expected either sdk_key or sdk_key_file, got sdk_key as well ({third})",
        f'default ({third}): expected true or false, got "maybe"',
        f'hosts ({third}): expected a list of host names without port, got "a.example:80"',
        f'settings_file ({third}): expected a file that can be read, got "none.json"',
        f'webhook_token ({third}): expected at least 16 characters without blanks, and no placeholder, got "****"',
    ]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ('name = "production"', "name (environments.toml, environment production)"),
        (f'sdk_key = "{KEY}"', "sdk_key (environments.toml, environment staging)"),
        (f'previous_sdk_keys = ["{KEY}"]', "previous_sdk_keys (environments.toml, environment staging)"),
        ('previous_sdk_keys = ["fedcba9876543210"]', "previous_sdk_keys (environments.toml, environment staging)"),
        ("default = true", "default (environments.toml, environment staging)"),
        ('hosts = ["A.example", "a.example"]', "hosts (environments.toml, environment staging)"),
    ],
)
def test_names_keys_hosts_and_the_default_occur_once(more: str, problem: str) -> None:
    key = more.partition(" ")[0]
    block = "\n".join(line for line in STAGING.splitlines() if not line.startswith(f"{key} ="))
    (found,) = problems(f"{PRODUCTION}{block}\n{more}\n")
    assert found.startswith(f"{problem}: expected a value that occurs once, got that of environment")
    assert KEY not in found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "environments.toml: expected one [[environment]] or more"),
        ("[environment]\nname = 'a'", "environments.toml: expected [[environment]] blocks, got another type of value"),
        ("name", "environments.toml: expected TOML, got a mistake: Expected '=' after a key in a key/value pair"),
        ("a = " + "[" * 100_000, "environments.toml: expected TOML, got a mistake: maximum recursion depth exceeded"),
        ("#" * 1_100_000, "environments.toml: expected at most 1048576 bytes"),
        (PRODUCTION + f"event_queue_limit = 0x{'f' * 9999}", "event_queue_limit (environments.toml, environment prod"),
        (PRODUCTION + "event_queue_limit = 5", "event_queue_limit (environments.toml, environment production): expe"),
        (PRODUCTION + "cors_allowed_origins = ['*', 'https://a.example']", "cors_allowed_origins (environments.toml, "),
    ],
)
def test_a_file_that_cannot_be_used(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert found.startswith(problem)


def test_more_environments_than_permitted() -> None:
    assert problems(PRODUCTION + STAGING, MAX_ENVIRONMENTS="1") == [
        "environments.toml: expected at most 1 environments, got 2"
    ]


@pytest.mark.parametrize("name", ["ACCOUNT_ID", "SDK_KEY", "SETTINGS_FILE", "WEBHOOK_TOKEN", "STORE_NAMESPACE"])
def test_options_of_one_environment_are_not_those_of_the_gateway(name: str) -> None:
    values = {"ACCOUNT_ID": "7", "SETTINGS_FILE": "environments.toml"}
    found = problems(PRODUCTION, **{name: values.get(name, "0123456789abcdef")})
    assert any(f"{name} (environment): expected nothing, because ENVIRONMENTS_FILE is set" in line for line in found)


def test_a_mistake_in_the_options_and_one_in_the_file_are_listed_together() -> None:
    assert len(problems("[[environment]]\nname = 'a'\naccount_id = 1", PORT="x")) == 2


def test_the_example_of_the_documentation_is_valid() -> None:
    text = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    example = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    for name in ("production", "staging", "staging-webhook"):
        Path(name).write_text(f"secret-of-{name}-0123456789")
    production, staging = loaded(example.replace("/run/secrets/", ""))
    assert (production.is_default, staging.hosts) == (True, ("flags-staging.example.com",))


def test_the_documentation_has_every_key_of_the_file() -> None:
    text = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    rows = "".join(line for line in text.splitlines() if line.startswith("| `"))
    assert {key for key in environments._KEYS if not key.endswith("_file") and f"`{key}`" not in rows} == set()


def test_an_empty_list_of_origins_is_no_way_to_allow_all():
    """Nothing else is left out silently: CORS_ALLOWED_ORIGINS of the gateway, which is * by default, would apply."""
    (problem,) = problems(PRODUCTION + "cors_allowed_origins = []\n")
    assert problem.startswith("cors_allowed_origins (")
    assert problem.endswith("got an empty list")
    (environment,) = loaded(PRODUCTION + "hosts = []\nprevious_sdk_keys = []\n")
    assert environment.hosts == environment.previous_sdk_keys == ()
