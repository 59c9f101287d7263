"""Log lines: their formats, their number, and that they never contain a secret."""

import asyncio
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time

import captured_logs
import pytest
from process import SAMPLE_SETTINGS, Gateway, free_port, sample_document
from vendor import Fault, Vendor

from tornado_gateway import logs
from tornado_gateway.logs import MAX_REASONS, ThrottledLog

SECRET = "s3cr/t+w ith\"quotes'"
restored = captured_logs.restored
written = captured_logs.written


def fail(request):
    raise RuntimeError(f"no such thing: {SECRET}")


# --- shapes ---------------------------------------------------------------------


def test_json_lines(written):
    text = written("json")
    logging.getLogger("a.b").info("two\nlines of %s", "it")
    try:
        fail(None)
    except RuntimeError:
        logging.getLogger("a").exception("failed")
    first, second = map(json.loads, text().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("at"))
    assert first == {"level": "INFO", "logger": "a.b", "message": "two\nlines of it", "pid": os.getpid()}
    assert second["exception"].splitlines()[0] == "Traceback (most recent call last):"


def test_lines_for_people(written):
    text = written("human")
    logging.getLogger("a.b").info("hello")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO  a\.b: hello\n", text())


@pytest.mark.parametrize(
    ("level", "shown"), [("ERROR", ["e", "w"]), ("INFO", ["e", "w", "i"]), ("DEBUG", list("ewid"))]
)
def test_levels(written, level, shown):
    text = written("json", level)
    if level == "ERROR":
        logging.getLogger("other.library").warning("for developers")
    log = logging.getLogger("tornado_gateway.x")
    log.error("e")
    log.warning("w")
    log.info("i")
    log.debug("d")
    assert [json.loads(line)["message"] for line in text().splitlines()] == shown


def test_an_announcement_is_written_at_every_level(written):
    text = written("json", "ERROR", [SECRET])
    logs.announce("the gateway serves", {"workers": 2, "example": f"curl {SECRET}"}, "not for logs")
    line = json.loads(text())
    assert (line["message"], line["workers"], line["example"]) == ("the gateway serves", 2, f"curl {logs.MASK}")
    text = written("human", "ERROR", [SECRET])
    logs.announce("the gateway serves", {"workers": 2}, f"Console  http://x/console#token={SECRET}")
    assert text() == f"Console  http://x/console#token={SECRET}\n", "the caller decides whether this is a terminal"


def test_a_line_about_a_condition_of_all_workers_is_written_by_the_one_that_claims_it(written):
    text = written("human")
    asked, responses = [], ["", None, "and more"]
    logs.share(lambda *claim: asked.append(claim) or responses[len(asked) - 1])
    for _ in responses:
        logging.getLogger("x").error("Redis is %s", "down", extra=logs.once("redis", 5.0))
    logging.getLogger("x").error("a line of this worker")
    assert asked == [("redis", "", 5.0)] * 3
    assert [line.partition(": ")[2] for line in text().splitlines()] == [
        "Redis is down",
        "Redis is down and more",
        "a line of this worker",
    ]


def run_until_it_serves(stderr, **options):
    environment = {"PATH": os.environ["PATH"], "PORT": str(free_port()), "HOST": "127.0.0.1", "WORKERS": "1"}
    environment |= {"LOG_LEVEL": "INFO", "SETTINGS_FILE": str(SAMPLE_SETTINGS)} | options
    return subprocess.Popen([sys.executable, "-m", "tornado_gateway", "serve"], env=environment, stderr=stderr)


@pytest.mark.parametrize("log_format", ["auto", "json"])
def test_a_terminal_gets_lines_for_people_unless_json_is_wanted(tmp_path, log_format):
    ours, theirs = pty.openpty()
    process = run_until_it_serves(theirs, DATA_DIR=str(tmp_path), LOG_FORMAT=log_format)
    os.close(theirs)
    text = b""
    try:
        while b"serving on" not in text:
            text += os.read(ours, 4096)
    finally:
        process.terminate()
        assert process.wait(60) == 0
        os.close(ours)
    lines = text.decode().splitlines()
    assert all(line.startswith("{") for line in lines) == (log_format == "json"), lines


def test_uncaught_exceptions_go_the_same_way(written):
    text = written("json", secrets=[SECRET])
    try:
        fail(None)
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    line = json.loads(text())
    assert line["level"] == "CRITICAL"
    assert logs.MASK in line["exception"]


# --- secrets ----------------------------------------------------------------------


@pytest.mark.parametrize("log_format", ["json", "human"])
def test_secrets_are_masked_however_they_are_written(written, log_format):
    text = written(log_format, secrets=[SECRET])
    log = logging.getLogger("x")
    log.error("plain %s", SECRET)
    log.error("url %s", "http://x/?i=s3cr%2Ft%2Bw+ith%22quotes%27 or s3cr%2ft%2bw%20ith%22quotes%27")
    log.error("json %s", json.dumps({"k": SECRET}))
    log.error("repr %r", {"k": SECRET})
    try:
        fail(None)
    except RuntimeError:
        log.exception("failed")
    assert "s3cr" not in text()
    assert text().count(logs.MASK) >= 6
    if log_format == "json":
        assert len([json.loads(line) for line in text().splitlines()]) == 5


def test_a_secret_that_becomes_known_later_is_masked_from_then_on(written):
    text = written("human")
    logs.hide("later-known", None, "", "abc")
    logging.getLogger("x").error("later-known, abc")
    assert text().endswith(f"x: {logs.MASK}, abc\n")  # too short to be told from a part of a word


def test_nothing_that_a_gateway_writes_has_a_secret_in_it(tmp_path):
    """All kinds of trouble at DEBUG, then all that was written is searched, outside DATA_DIR."""
    secrets = {
        "SDK_KEY": "sdk-key-0123456789abcdef",
        "ADMIN_TOKEN": "admin-token-0123456789",
        "WEBHOOK_TOKEN": "webhook-token-0123456789",
        "MAXMIND_LICENSE_KEY": "licence0123456789",
        "REDIS_PASSWORD": "redis-password-0123456789",
    }
    redis = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": free_port()}  # nobody is there
    options = {"LOG_LEVEL": "DEBUG", "POLLING_TIME": 500, "FLUSH_EVENTS_INTERVAL": 1, "WORKERS": 2}
    options |= {"MAXMIND_USER_ID": 1, **redis, **secrets}
    with Vendor(sample_document()) as vendor:
        vendor.settings_faults += [Fault(401), Fault(500), Fault(close=True)]
        vendor.event_faults += [Fault(500), Fault(close=True), Fault(400, times=10)]
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            vendor.wait_until(lambda: not vendor.settings_faults and gateway.get("/ready")[0] == 200)
            for _ in range(4):
                gateway.post("/server-side/getFlag?i=" + secrets["SDK_KEY"], {"featureKey": "f", "userId": "u"})
                gateway.post("/server-side/trackEvent", {"eventName": "purchase", "userId": "u"})
                gateway.get("/server-side/v2-settings?i=" + secrets["SDK_KEY"])
                gateway.get("/nothing?token=" + secrets["ADMIN_TOKEN"])
            vendor.wait_until(lambda: len(vendor.event_faults) <= 1)
            gateway.terminate()
    text = gateway.log()
    assert len(text.splitlines()) > 10
    for line in text.splitlines():
        json.loads(line)
    for name, secret in secrets.items():
        assert secret not in text, name


# --- one line per event ----------------------------------------------------------------


def test_requests_write_no_lines(tmp_path):
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, LOG_LEVEL="INFO") as gateway:
        deadline = time.monotonic() + 30
        while " is ready" not in gateway.log():  # the parent's line, the last one of a start
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = gateway.log()
        for number in range(20):
            gateway.post("/server-side/getFlag", {"featureKey": "new-checkout", "userId": f"u{number}"})
            gateway.post("/server-side/getFlag", b"{")
            gateway.get("/nothing")
            gateway.get("/status")
        assert gateway.log() == before


def test_an_outage_is_one_line_and_its_end_another(tmp_path):
    with Vendor(sample_document()) as vendor:
        options = {"POLLING_TIME": 500}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            vendor.settings_faults.append(Fault(500, times=3))
            document = sample_document()
            vendor.wait_until(lambda: not vendor.settings_faults)
            document["features"][0]["name"] = "Another name"
            document["features"].pop()
            vendor.settings = json.dumps(document).encode()
            vendor.wait_until(lambda: "~new-checkout" in gateway.log())
            gateway.terminate()
    lines = [json.loads(line)["message"] for line in gateway.log().splitlines()]
    down = [line for line in lines if line.startswith("Settings refresh failed: VWO returned 500 ")]
    again = [line for line in lines if line.startswith("Settings refresh succeeded after failing for ")]
    assert (len(down), len(again)) == (1, 1)
    (changed,) = [line for line in lines if "~new-checkout" in line]
    gone = sample_document()["features"][-1]["key"]
    assert changed.endswith(f"10 features (-{gone}, ~new-checkout)")


async def test_a16_one_line_per_reason_and_interval_and_the_number_of_further_occurrences(caplog):
    log = ThrottledLog(logging.getLogger("x"), seconds=0.1)
    for _ in range(1000):
        log.warning("one", "rejected: %s", "one", count=2)
    log.error("another", "rejected: %s", "another")
    assert [record.getMessage() for record in caplog.records] == ["rejected: one", "rejected: another"]
    async with asyncio.timeout(60):
        while len(caplog.records) < 3:
            await asyncio.sleep(0.01)
    assert caplog.records[2].getMessage() == "rejected: one (1999 more within 0.1 s)"
    log.warning("one", "rejected: %s", "one, newer")
    async with asyncio.timeout(60):
        while len(caplog.records) < 4:
            await asyncio.sleep(0.01)
    assert caplog.records[3].getMessage() in ("rejected: one, newer", "rejected: one, newer (1 more within 0.1 s)")


async def test_a16_after_an_interval_without_occurrences_the_next_one_is_logged_at_once(caplog):
    log = ThrottledLog(logging.getLogger("x"), seconds=0.05)
    log.error("one", "failed")
    async with asyncio.timeout(60):
        while len(caplog.records) < 2:
            await asyncio.sleep(0.2)
            log.error("one", "failed again")
    assert caplog.records[1].getMessage() == "failed again"


async def test_reasons_with_text_from_outside_cannot_fill_the_log(caplog):
    log = ThrottledLog(logging.getLogger("x"))
    for number in range(10 * MAX_REASONS):
        log.error(str(number), "failed: %d", number)
    assert len(caplog.records) == MAX_REASONS


async def test_lines_of_an_environment_begin_with_its_name(caplog):
    """Its tasks have the name in their context; a throttled line has it too, although a request causes it."""
    stream = io.StringIO()
    logs.set_up("INFO", "json", stream=stream)
    made = []

    async def environment():
        logs.begin_lines_with("staging")
        made.append(ThrottledLog(logging.getLogger("x")))
        await asyncio.create_task(asyncio.to_thread(logging.getLogger("x").info, "from a thread"))

    await asyncio.create_task(environment())
    made[0].error("reason", "from a request")
    logging.getLogger("x").info("from elsewhere")
    messages = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert messages == ["staging: from a thread", "staging: from a request", "from elsewhere"]
