"""`token new`: the token once, and a block that TOKENS_FILE accepts."""

import pytest

from tornado_gateway.cli.main import main
from tornado_gateway.config import read_tokens
from tornado_gateway.environments.client_tokens import digest_of


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--scope", "decide", "--scope", "track", "--environment", "staging", "--expires", "2027-03-01"],
        ["--kind", "browser", "--environment", "production", "--origin", "https://shop.example"],
    ],
)
def test_the_block_is_that_of_the_token(arguments, tmp_path, capsys):
    assert main(["token", "new", "--id", "shop", *arguments]) == 0
    output = capsys.readouterr().out
    token = output.splitlines()[2]
    block = output.partition("Block for TOKENS_FILE:\n")[2]
    assert token not in block
    file = tmp_path / "tokens.toml"
    file.write_text(block)
    (row,) = read_tokens(file)
    assert row.digest == digest_of(token.encode())
    assert row.id == "shop"
    assert (row.expires is not None) == ("--expires" in arguments)


def test_a_browser_token_needs_origins_and_environments(capsys):
    assert main(["token", "new", "--id", "shop", "--kind", "browser"]) == 2
    assert "--origin" in capsys.readouterr().err


def test_an_invalid_time_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["token", "new", "--id", "shop", "--expires", "soon"])
    assert "2027-03-01T12:00Z" in capsys.readouterr().err
