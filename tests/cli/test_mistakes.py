"""Each mistake of `mistakes.py`, made for real: the message, the exit code and the line of the doctor."""

import os
import signal
import threading
from contextlib import ExitStack, suppress

import orjson
import pytest
from certificates import make_certificate
from forked import Forked
from mistakes import MISTAKES, RUNS
from process import ROOT, SAMPLE_SETTINGS, free_port
from redis_servers import REDIS_SERVER, RedisServer, cluster
from vendor import Fault, Vendor

PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The servers and files of all mistakes, and the texts that name them."""
    directory = tmp_path_factory.mktemp("mistakes")
    make_certificate(directory, "expired", days=-1)
    with ExitStack() as stack:
        vendor = stack.enter_context(Vendor())
        vendor.settings_faults.append(Fault(status=401, times=10_000))
        found = {"dir": directory, "port": vendor.port, "vendor": vendor.url, "sample": SAMPLE_SETTINGS}
        if REDIS_SERVER:
            redis = RedisServer(directory / "redis", requirepass="right-password")
            found["redis"] = stack.enter_context(redis).port
            found["node"] = other_node(stack.enter_context(cluster(directory / "cluster")).servers)
        yield found


def other_node(nodes):
    """Return the port of a node that has not the slot of the sample account."""
    for node in nodes:
        with suppress(AssertionError):
            node.command("GET", "{fme:123456}")
            continue
        return node.port
    raise AssertionError(nodes)


@pytest.mark.parametrize("mistake", [pytest.param(mistake, id=mistake.id) for mistake in MISTAKES])
def test_a_mistake_is_named_with_its_remedy(mistake, places, tmp_path):
    if not REDIS_SERVER and any(place in str(mistake) for place in ("{redis}", "{node}")):
        pytest.skip("redis-server is not installed")
    names = {**places, "dir": tmp_path, "free": free_port()}
    for path in places["dir"].glob("expired.*"):
        (tmp_path / path.name).symlink_to(path)
    for name, text in mistake.files.items():
        (tmp_path / name).write_text(text)
    with command(mistake, names, "doctor") as doctor, command(mistake, names, mistake.command) as made:
        message = filled(mistake.message, names)
        lines = list(lines_until(made, message)) if mistake.code is RUNS else list(map(message_of, made.stderr))
        if mistake.code is RUNS:
            assert any(message in line for line in lines), lines
            made.send_signal(signal.SIGTERM)
        else:
            assert message in lines
        assert made.wait(PATIENCE_SECONDS) == (0 if mistake.code is RUNS else mistake.code), lines
        found = doctor.stdout.read().splitlines()
        assert filled(mistake.doctor, names) in found
        assert doctor.wait(PATIENCE_SECONDS) == mistake.doctor_code, found
        remedy = found[found.index(filled(mistake.doctor, names)) + 1]
        assert remedy.lstrip().startswith("-> ")
        written = "\n".join((*lines, *found, made.stderr.read(), made.stdout.read(), doctor.stderr.read()))
    assert "Traceback" not in written
    assert "hush" not in written


def test_there_are_at_least_25_mistakes_and_each_is_another_one():
    assert len({mistake.id for mistake in MISTAKES}) == len(MISTAKES) >= 25
    assert len({mistake.message for mistake in MISTAKES}) == len(MISTAKES)


def filled(text, names):
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def command(mistake, names, name):
    """Start a command with the options of the mistake; only the port and the data of each are its own."""
    defaults = {"HOST": "127.0.0.1", "PORT": str(free_port()), "WORKERS": "1", "LOG_LEVEL": "INFO"}
    given = {key: filled(text, names) for key, text in mistake.options.items()}
    variables = {"PATH": os.environ["PATH"], "DATA_DIR": str(names["dir"] / "data"), **defaults, **given}
    arguments = [filled(flag, names) for flag in mistake.flags]
    if mistake.env_file:
        file = names["dir"] / "gateway.env"
        file.write_text("\n".join(mistake.env_file))
        arguments += ["--env-file", str(file)]
    for key in ("PORT", "LOG_LEVEL"):
        if any(line.removeprefix("export ").startswith(f"{key}=") for line in mistake.env_file):
            del variables[key]
    return Forked(ROOT, [name, *arguments], variables, ROOT)


def message_of(line):
    """Return the message of a line of the log, and any other line without its bullet."""
    line = line.rstrip("\n")
    return orjson.loads(line)["message"] if line.startswith("{") else line.removeprefix("  - ")


def lines_until(process, message):
    """Yield the messages of a running gateway up to the one that has this text, or until the deadline."""
    deadline = threading.Timer(PATIENCE_SECONDS, process.kill)
    deadline.start()
    try:
        for line in map(message_of, process.stderr):
            yield line
            if message in line:
                return
    finally:
        deadline.cancel()
