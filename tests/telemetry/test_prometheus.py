"""GET /metrics: right across workers, never backwards, bounded, documented; alerts and dashboard fit."""

import asyncio
import http.client
import itertools
import os
import platform
import random
import re
import signal
import time

import orjson
import pytest
import yaml
from ledger import visitor_requests
from load import Load
from metrics import assert_adds_up, is_cumulative, samples_of, scrape
from process import ROOT, SAMPLE_SETTINGS, Gateway, sample_document
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from vendor import Fault, Vendor

from tornado_gateway import __version__
from tornado_gateway.api.routes import LABELS
from tornado_gateway.http.messages import Request
from tornado_gateway.process.counters import LAYOUT, new_counters
from tornado_gateway.telemetry.counters import CounterRow
from tornado_gateway.telemetry.layout import OTHER
from tornado_gateway.telemetry.observer import Observer
from tornado_gateway.telemetry.problems import CONDITIONS, runbook
from tornado_gateway.telemetry.prometheus import About, Exposition
from tornado_gateway.telemetry.scoreboard import Scoreboard

OPERATING = (ROOT / "docs" / "operating.md").read_text()
# With Redis, and with ENVIRONMENTS_FILE
ONLY_SOMETIMES = {
    *("fme_redis_up", "fme_unidentified_total", "fme_sdk_key_requests_total"),
    *("fme_feature_decisions_total", "fme_feature_exposures_total"),
}
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


# --- a running gateway --------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    options = {
        "SETTINGS_FILE": SAMPLE_SETTINGS,
        "MAXMIND_DB_PATH": ROOT / "tests/data/geoip/GeoIP2-City-Test.mmdb",
    }
    with Gateway(tmp_path_factory.mktemp("metrics") / "data", WORKERS=2, **options) as running:
        # Slowly: at a higher rate latencies are sampled, and their count is an estimate.
        asyncio.run(Load(running.port, visitor_requests(1), connections=4, total=200, pause_seconds=0.03).run())
        _until(running, lambda s: answered(s) == 200 and s["fme_loop_lag_seconds_count", ()] > 0)
        yield running


def answered(samples):
    """Requests of data that had a result, as far as the workers have published them."""
    wanted = [(("method", "POST"), ("route", route), ("status", "200")) for route in LABELS]
    return sum(samples.get(("fme_requests_total", labels), 0) for labels in wanted)


def test_the_text_is_what_prometheus_reads(gateway):
    text, kind = scrape(gateway)
    assert kind.startswith("text/plain; version=0.0.4")
    samples = samples_of(text)
    assert samples["fme_build_info", (("python", platform.python_version()), ("version", __version__))] == 1
    assert samples["fme_workers", ()] == 2
    routed = {labels: value for (name, labels), value in samples.items() if name == "fme_requests_total"}
    get_flag = (("method", "POST"), ("route", "/server-side/getFlag"), ("status", "200"))
    assert routed[get_flag] == 100
    assert samples["fme_decisions_total", (("outcome", "enabled"),)] == 100
    assert samples["fme_request_seconds_count", (("route", "/server-side/getFlag"),)] == 100
    assert samples["fme_settings_loaded", ()] == 1
    assert samples["fme_location_database_age_seconds", ()] > 0
    assert samples["fme_loop_lag_seconds_count", ()] > 0
    assert_adds_up(samples)


def test_openmetrics_for_who_asks_for_it(gateway):
    text, kind = scrape(gateway, OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics.text_string_to_metric_families(text)}
    assert "fme_requests" in names


def test_no_label_is_a_visitor_a_feature_or_a_secret(gateway):
    text, _ = scrape(gateway)
    labels = {name for family in text_string_to_metric_families(text) for s in family.samples for name in s.labels}
    assert labels <= {
        *("method", "route", "status", "outcome", "le", "call", "of", "result", "reason", "code", "severity"),
        *("version", "hash", "source", "python"),
        "feature",  # of slow patterns, which there are none of here
    }
    assert "new-checkout" not in text
    assert sample_document()["sdkKey"] not in text


def test_what_clients_invent_makes_no_series(gateway):
    before = len(samples_of(scrape(gateway)[0]))
    for number in range(50):
        gateway.get(f"/nothing/{number}")
        gateway.request("PUT" if number % 2 else "DELETE", f"/server-side/{number}")
    unknown = "fme_requests_total", (("method", "GET"), ("route", OTHER), ("status", "404"))
    samples = _until(gateway, lambda samples: samples.get(unknown, 0) >= 50)
    assert samples[unknown] == 50
    assert len(samples) <= before + 4


def test_everything_is_documented_and_everything_documented_exists(gateway):
    shown = {family.name + ("_total" if family.type == "counter" else "") for family in families(gateway)}
    documented = set(re.findall(r"^\| `(fme_\w+)` \|", OPERATING, re.MULTILINE))
    assert documented == shown | ONLY_SOMETIMES


def families(gateway):
    return list(text_string_to_metric_families(scrape(gateway)[0]))


def test_the_table_tells_kinds_and_labels(gateway):
    for family in families(gateway):
        name = family.name + ("_total" if family.type == "counter" else "")
        kind, words = re.search(rf"^\| `{name}` \| (\w+) \| (.*?) ?\|", OPERATING, re.MULTILINE).groups()
        assert kind == family.type, name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(re.findall(r"`(\w+)`", words)), name


# --- alerts and dashboard -------------------------------------------------------


def names_in(expression):
    return set(re.findall(r"\bfme_\w+", expression))


@pytest.fixture(scope="module")
def known_names(gateway):
    return {name for name, _ in samples_of(scrape(gateway)[0])} | ONLY_SOMETIMES


def alerts():
    (group,) = yaml.safe_load((ROOT / "conf" / "prometheus-alerts.yaml").read_text())["groups"]
    return group["rules"]


def test_alerts_ask_for_metrics_that_exist(known_names):
    for alert in alerts():
        assert set(alert) <= {"alert", "expr", "for", "labels", "annotations"}
        assert names_in(alert["expr"]) <= known_names, alert["alert"]
        assert "fme_problem" in alert["expr"] or alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]


def test_each_alert_has_a_section_in_the_runbook_and_no_section_is_without_one():
    part = OPERATING.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    sections = re.findall(r"^### (\w+)$\n\n(.{80,}?)(?=^### |\Z)", part, re.MULTILINE | re.DOTALL)
    assert [alert["alert"] for alert in alerts()] == [name for name, _ in sections]
    anchors = anchors_of(OPERATING)
    for alert in alerts():
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert page == "http://{{ $labels.instance }}/docs/operating"
        assert anchor in (alert["alert"].lower(), *CONDITIONS)
        assert anchor in anchors
        if anchor in CONDITIONS:
            assert alert["labels"]["severity"] == CONDITIONS[anchor].severity
            assert f'<a id="{anchor}"></a>\n\n### {alert["alert"]}\n' in part


def anchors_of(text):
    headings = [title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return [*headings, *re.findall(r'<a id="([^"]+)"></a>', text)]


@pytest.mark.parametrize("code", CONDITIONS)
def test_each_condition_has_one_anchor_in_the_runbook(code):
    page, _, anchor = runbook(code).partition("#")
    assert page == "/docs/operating"
    assert anchors_of(OPERATING).count(anchor) == 1


def test_each_condition_has_an_alert():
    alerted = {alert["annotations"]["runbook"].partition("#")[2] for alert in alerts()} & set(CONDITIONS)
    (general,) = [alert for alert in alerts() if alert["alert"] == "GatewayProblem"]
    excepted = re.search(r'code!~"([^"]+)"', general["expr"])[1].split("|")
    assert set(excepted) == alerted


def dashboard():
    return orjson.loads((ROOT / "conf" / "grafana-dashboard.json").read_bytes())


def test_the_dashboard_is_one_and_asks_for_metrics_that_exist(known_names):
    board = dashboard()
    assert board["title"]
    assert board["schemaVersion"] >= 36
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "instance"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    asked = set()
    for panel in board["panels"]:
        assert panel["title"]
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert names_in(target["expr"]) <= known_names, target["expr"]
            asked |= names_in(target["expr"])
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}
    documented = set(re.findall(r"^\| `(fme_\w+)` \|", OPERATING, re.MULTILINE))
    assert shown == documented, "the dashboard shows all of it"


def test_panels_do_not_overlap():
    taken = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


# --- never backwards --------------------------------------------------------------


def test_no_counter_goes_backwards_under_load_or_when_workers_are_killed(tmp_path):
    rng = random.Random(6)
    with (
        Vendor(sample_document()) as vendor,
        Gateway.of_vendor(tmp_path / "data", vendor, WORKERS=2, EVENTS_PER_REQUEST=20) as gateway,
    ):
        killed, scrapes = asyncio.run(_scrape_while_workers_die(gateway, rng, kills=4))
        assert killed == 4
    for before, after in itertools.pairwise(scrapes):
        assert_adds_up(after)
        for key, value in before.items():
            if is_cumulative(key[0]):
                assert after.get(key, -1) >= value, key
    assert scrapes[-1]["fme_worker_restarts_total", ()] == 4


async def _scrape_while_workers_die(gateway, rng, kills):
    class Visitors(Load):
        async def run(self):
            await asyncio.gather(*(self._again() for _ in range(self.connections)))

        async def _again(self):
            while not self.stopping:
                await self._connection()
                await asyncio.sleep(0.02)

    load = Visitors(gateway.port, visitor_requests("x"), connections=8, pause_seconds=0.005)
    running = asyncio.create_task(load.run())
    scrapes, killed, next_kill, deadline = [], 0, time.monotonic() + 1.5, time.monotonic() + 300
    while killed < kills or not _goes_on_after(scrapes, kills):
        assert time.monotonic() < deadline, (killed, scrapes[-1])
        try:
            scrapes.append(samples_of((await asyncio.to_thread(scrape, gateway))[0]))
        except (OSError, http.client.HTTPException):  # that worker has just been killed
            continue
        if killed < kills and time.monotonic() >= next_kill:
            status = await asyncio.to_thread(gateway.status)
            serving = [worker for worker in status["workers"] if worker["state"] == "serving"]
            if len(serving) == 2:
                os.kill(rng.choice(serving)["pid"], signal.SIGKILL)
                killed, next_kill = killed + 1, time.monotonic() + rng.uniform(1.0, 1.5)
        await asyncio.sleep(0.02)
    load.stopping = True
    await running
    return killed, scrapes


def _goes_on_after(scrapes, kills):
    """All replacements have been seen for a while, and they have done something."""
    if len(scrapes) <= 100 or scrapes[-50]["fme_worker_restarts_total", ()] < kills:
        return False
    return answered(scrapes[-1]) > answered(scrapes[-50]) + 100


def test_gauges_of_a_worker_that_has_ended_are_not_shown():
    memory, board = new_counters(2), Scoreboard(2)
    gauges = {"geo_built_at": 1.0, "degraded": 1.0, "redis_up": 0.0, "streams": 0.0}
    memory.write(0, CounterRow(1, gauges, [0] * LAYOUT.size))
    text, _ = Exposition(memory, board, About("1", 10), lambda: None).render()
    samples = samples_of(text.decode())
    assert samples["fme_store_degraded", ()] == 0
    assert ("fme_redis_up", ()) not in samples


def test_requests_without_an_environment_are_shown_once_there_are_any():
    memory, board = new_counters(1), Scoreboard(1)
    observer = Observer(memory)
    exposition = Exposition(memory, board, About("1", 10), lambda: observer.publish({}))
    assert "fme_unidentified" not in exposition.render()[0].decode()
    for path in (b"/server-side/getFlag", b"//eu01/events/t", b"/nothing"):
        observer.unidentified(Request(b"POST", path, b"", []))
    samples = samples_of(exposition.render()[0].decode())
    for route in ("/server-side/getFlag", "/events/t", OTHER):
        assert samples["fme_unidentified_total", (("route", route),)] == 1


# --- what the counters follow ---------------------------------------------------------


def is_purchase(event):
    return event["d"]["event"]["name"] == "purchase"


def test_faults_upstream_are_counted(tmp_path):
    options = {"POLLING_TIME": 1000, "FLUSH_EVENTS_INTERVAL": 1}
    with Vendor(sample_document()) as vendor:
        vendor.event_faults += [Fault(500), Fault(400, times=100, refuses=is_purchase)]
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
            asyncio.run(Load(gateway.port, visitor_requests(1), connections=1, total=4).run())
            gateway.post("/server-side/getFlag", {"featureKey": "nothing", "userId": "u"})
            gateway.get("/get-user-details?userAgent=a&ipAddress=1.2.3.4")
            gateway.get("/get-user-details?userAgent=a&ipAddress=1.2.3.4")
            gateway.wait_for_dead_letters(1)
            samples = _until(gateway, lambda s: s["fme_events_waiting", ()] == 0)
            assert samples["fme_flush_requests_total", (("outcome", "failed"),)] >= 1
            assert samples["fme_flush_requests_total", (("outcome", "refused"),)] >= 1
            assert samples["fme_upstream_requests_total", (("call", "events"), ("status", "5xx"))] == 1
            assert samples["fme_upstream_requests_total", (("call", "settings"), ("status", "2xx"))] >= 1
            assert samples["fme_settings_polls_total", (("outcome", "changed"),)] == 1
            assert samples["fme_decisions_total", (("outcome", "not_found"),)] == 1
            assert samples["fme_lookups_total", (("of", "device"), ("result", "hit"))] == 1
            assert samples["fme_lookups_total", (("of", "device"), ("result", "miss"))] == 1
            assert_adds_up(samples)


def test_the_oldest_event_ages(tmp_path):
    with Vendor(sample_document()) as vendor:
        vendor.event_faults.append(Fault(503, times=10**6))
        with Gateway.of_vendor(tmp_path / "data", vendor, SHUTDOWN_SECONDS=1) as gateway:
            asyncio.run(Load(gateway.port, visitor_requests(1), connections=1, total=4).run())
            first = _until(gateway, lambda s: s["fme_events_oldest_seconds", ()] > 0)["fme_events_oldest_seconds", ()]
            _until(gateway, lambda s: s["fme_events_oldest_seconds", ()] > first + 1)


def _until(gateway, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition(samples := samples_of(scrape(gateway)[0])):
        assert time.monotonic() < deadline, samples
        time.sleep(0.1)
    return samples
