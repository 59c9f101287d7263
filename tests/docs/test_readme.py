"""The README's commands do what it says."""

import os
import re
import subprocess
import time
import urllib.request

import orjson
import pytest
from process import ROOT, free_port

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```sh\n(curl .*?)```\n```(?:json)?\n(.*?)\n```", README, re.DOTALL)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """What `scripts/run` starts when nothing is set."""
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    environment |= {"PORT": str(port), "DATA_DIR": str(tmp_path_factory.mktemp("readme"))}
    with subprocess.Popen([ROOT / "scripts" / "run"], env=environment, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=60).close()
                break
            except OSError:
                assert running.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield port
        running.terminate()


def test_the_first_screen_has_run_request_and_test():
    first_screen = README.partition("## ")[0]
    for part in ("scripts/run", "curl", '{"isEnabled":true', "scripts/test"):
        assert part in first_screen
    assert len(first_screen.splitlines()) < 40


@pytest.mark.parametrize(("command", "answer"), EXAMPLES)
def test_a_request_of_the_readme_gets_its_answer(port, command, answer):
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    output = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60).stdout
    assert orjson.loads(output) == orjson.loads(answer)


def test_there_are_examples():
    assert len(EXAMPLES) == 3


def test_the_explanation_of_the_readme_works():
    command = re.search(r"(\.venv/bin/tornado-gateway evaluate .*?)\n```", README, re.DOTALL)[1]
    command = command.replace(".venv/bin/tornado-gateway", "python -m tornado_gateway")
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, env={"PATH": path}, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) > 3
