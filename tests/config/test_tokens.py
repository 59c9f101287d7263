"""TOKENS_FILE: what it may contain, and every mistake at once."""

import hashlib

import pytest

from tornado_gateway.config import load, read_tokens
from tornado_gateway.errors import ConfigError

HASH = "sha256:" + "ab" * 32
SERVER = f'[[token]]\nid = "shop"\nhash = "{HASH}"\n'
BROWSER = f"""\
[[token]]
id = "shop-web"
hash = "sha256:{"0f" * 32}"
kind = "browser"
environments = ["production"]
scopes = ["decide"]
origins = ["https://Shop.example:443", "https://*.shop.example"]
expires = 2027-03-01T00:00:00Z
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tokens.toml"


def test_blocks_become_rows(file):
    file.write_text(SERVER + BROWSER)
    server, browser = read_tokens(file)
    assert server.digest == bytes.fromhex("ab" * 32)
    assert (server.kind, server.environments, server.expires) == ("server", (), None)
    assert server.scopes == {"decide", "track", "sdk"}
    assert browser.scopes == {"decide"}
    assert browser.origins == ("https://shop.example", "https://*.shop.example")
    assert browser.expires == 1803859200


def test_a_browser_token_without_scopes_has_those_that_are_allowed(file):
    file.write_text(BROWSER.replace('scopes = ["decide"]\n', ""))
    assert read_tokens(file)[0].scopes == {"decide", "track"}


def test_a_byte_order_mark_is_no_mistake(file):
    """Editors on Windows write one."""
    file.write_text(f'[[token]]\nid = "a"\nhash = "{HASH}"\n', encoding="utf-8-sig")
    assert [row.id for row in read_tokens(file)] == ["a"]


def test_an_empty_file_has_no_tokens(file):
    file.write_text("# none yet\n")
    assert read_tokens(file) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[token", "expected TOML"),
        pytest.param("x = " + "[" * 5000, "expected TOML", id="deeply nested"),
        ('token = "x"', "[[token]] blocks, got another type of value"),
        ("[tokens]", "unknown table or key tokens, expected [[token]] blocks only"),
        ('[[token]]\nid = "a b"\nhash = "' + HASH + '"', "id: expected at most 64"),
        ('[[token]]\nid = "a"', "hash: expected a value, got nothing"),
        (f'[[token]]\nhash = "{HASH}"', "id: expected a value, got nothing"),
        ('[[token]]\nid = "a"\nhash = "fmes_secret"', "hash: expected sha256: and 64"),
        (SERVER + 'kind = "mobile"', "kind: expected server or browser"),
        (SERVER + 'scopes = ["admin"]', "scopes: expected a list of decide, track, sdk"),
        (SERVER + "environments = []", "environments: expected a list of one or more names"),
        (SERVER + "scopes = []", "scopes: expected a list"),
        (SERVER + 'expires = "tomorrow"', "expires: expected a TOML date"),
        (SERVER + "rate = 5", "unknown key 'rate'"),
        (SERVER + 'origins = ["https://shop.example"]', "only browser tokens have origins"),
        (BROWSER.replace('"decide"', '"sdk"'), "a browser token can have decide and track only"),
        (BROWSER.replace('origins = ["https://Shop.example:443", "https://*.shop.example"]', ""), "at least one"),
        (BROWSER.replace('environments = ["production"]', ""), "environments: expected at least one"),
        (BROWSER.replace('"https://*.shop.example"', '"*"'), "origins: expected a list of origins"),
        (SERVER + SERVER, "expected every hash once, got that of token 1 again"),
    ],
)
def test_a_mistake_is_named(file, text, expected):
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_tokens(file)
    assert len(caught.value.problems) == 1
    assert expected in caught.value.problems[0]
    assert "fmes_secret" not in str(caught.value)


def test_all_mistakes_are_listed_at_once(file):
    file.write_text('[[token]]\nid = 5\nhash = "x"\n[[token]]\nkind = "y"\n')
    with pytest.raises(ConfigError) as caught:
        read_tokens(file)
    assert len(caught.value.problems) == 5


def test_a_huge_file_is_rejected(file):
    file.write_text("#" * (1 << 20) + "\n")
    with pytest.raises(ConfigError, match="at most"):
        read_tokens(file)


def test_the_configuration_reports_them(file):
    file.write_text("[[token]]\n")
    given = {"ACCOUNT_ID": "1", "SDK_KEY": "k" * 32, "TOKENS_FILE": str(file)}
    with pytest.raises(ConfigError) as caught:
        load({}, given)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("given", ["short", "aaaaaaaaaaaaaaaaaaaaaaaa", "put-your-token-here-please"])
def test_a_guessable_client_token_is_rejected_and_not_shown(given):
    environ = {"ACCOUNT_ID": "1", "SDK_KEY": "k" * 32, "CLIENT_TOKENS": f"{hashlib.sha1(b'x').hexdigest()},{given}"}
    with pytest.raises(ConfigError, match="CLIENT_TOKENS") as caught:
        load({}, environ)
    assert given not in str(caught.value)


def test_authentication_without_any_credential_is_a_contradiction():
    environ = {"ACCOUNT_ID": "1", "SDK_KEY": "k" * 32, "CLIENT_AUTH": "all", "SDK_KEY_AUTH": "false"}
    with pytest.raises(ConfigError, match="no client token is configured"):
        load({}, environ)


def test_an_unknown_environment_is_named(file):
    file.write_text(BROWSER)
    with pytest.raises(ConfigError, match=r"expected names of environments .default., got 'production'"):
        load({}, {"ACCOUNT_ID": "1", "SDK_KEY": "k" * 32, "TOKENS_FILE": str(file)})


def test_a_token_may_name_an_environment_that_is_not_in_the_file(file, tmp_path):
    file.write_text(BROWSER)
    environments = tmp_path / "environments.toml"
    environments.write_text(f'[[environment]]\nname = "staging"\naccount_id = 1\nsdk_key = "{"s" * 32}"\n')
    config = load({}, {"ENVIRONMENTS_FILE": str(environments), "TOKENS_FILE": str(file)})
    assert config.tokens_file == file
