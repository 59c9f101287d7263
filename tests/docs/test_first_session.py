"""The first session: the first screen of README.md, the record of a new clone, and a session of today are the same."""

import os
import re

import pytest
from first_session import normalised, record
from process import ROOT

RECORD = ROOT / "tests" / "data" / "first-session.txt"


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return record(ROOT, {**environment, "DATA_DIR": str(tmp_path_factory.mktemp("session") / "data")})


def test_the_first_screen_of_the_readme_is_a_real_session(today):
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").partition("## ")[0]
    blocks = dict(enumerate(re.findall(r"^```\w+\n(.*?)^```", first_screen, re.DOTALL | re.MULTILINE)))
    assert len(blocks) == 6, "the command, the banner, the request, its response and the stop; scripts/test"
    assert blocks[0].startswith("scripts/run ")
    shown = f"$ scripts/run\n{blocks[1]}$ {blocks[2]}{blocks[3]}{blocks[4]}"
    assert normalised(shown) == normalised(today)


def test_the_record_of_a_new_clone_is_such_a_session(today):
    recorded = RECORD.read_text(encoding="utf-8")
    assert recorded.startswith("$ git clone ")
    assert "installing into .venv" in recorded
    assert normalised(recorded) == normalised(today)


def test_the_link_on_the_screen_signs_in_and_no_other_line_has_the_token(today):
    [link] = re.findall(r"Console +(http://127\.0\.0\.1:\d+/console#token=\S{16,})\n", today)
    assert today.count(link.partition("#token=")[2]) == 1
    assert "0.0.0.0" not in today
