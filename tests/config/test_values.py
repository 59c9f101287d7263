"""A mistake in the form of a file is the same message for each of the two files that consist of blocks."""

import pytest

from tornado_gateway.config import load, read_tokens
from tornado_gateway.config.environments import environments_of
from tornado_gateway.config.values import MAX_FILE_BYTES
from tornado_gateway.errors import ConfigError


def tokens_of(path):
    return read_tokens(path)


def environments_in(path):
    return environments_of(load({}, {"ENVIRONMENTS_FILE": str(path), "DATA_DIR": str(path.parent)}))


READERS = {"token": tokens_of, "environment": environments_in}
CASES = {
    "too large": ("#" * (MAX_FILE_BYTES + 1), f"expected at most {MAX_FILE_BYTES} bytes"),
    "no TOML": ("name", "expected TOML, got a mistake: Expected '='"),
    "deeply nested": ("a = " + "[" * 100_000, "expected TOML, got a mistake: maximum recursion depth exceeded"),
    "not UTF-8": (b"\xff", "expected a text file that can be read, got one that cannot (not UTF-8)"),
    "no list": ("[{table}]\nname = 'a'", "expected [[{table}]] blocks, got another type of value"),
    "unknown table": ("[[{table}]]\n[surprise]", "unknown table or key surprise, expected [[{table}]] blocks only"),
}


@pytest.mark.parametrize("table", READERS)
@pytest.mark.parametrize("case", CASES)
def test_mistakes_in_the_form_have_the_same_message(tmp_path, table, case):
    content, expected = CASES[case]
    path = tmp_path / "blocks.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.replace("{table}", table).encode())
    with pytest.raises(ConfigError) as error:
        READERS[table](path)
    assert any(expected.replace("{table}", table) in problem for problem in error.value.problems), error.value.problems
