"""The console and the API page in a real browser: Chromium without a window, driven through Playwright.

Screenshots are left in tests/artefacts/ to be looked at. Every page is watched: no test passes with an error in the
console or with a request to another host.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from in_process import TOKEN as OPERATORS_TOKEN
from in_process import InProcess
from load import Load
from process import Gateway, free_port, sample_document
from redis_servers import RedisServer, needs_redis_server
from several import KEYS, KeyedVendor, document, gateway_of, statuses, three
from vendor import Fault, Vendor

from tornado_gateway import core
from tornado_gateway.console.auth import COOKIE, Auth

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
expect = sync_api.expect
expect.set_options(timeout=60_000)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")

SDK = Path(__file__).parents[1] / "sdk"
KEY = sample_document()["sdkKey"]
ARTEFACTS = Path(__file__).parents[1] / "artefacts"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Whatever a browser asks by itself (updates, autofill) does not leave this machine.
    "--host-resolver-rules=MAP gateway.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
TABS = ["overview", "features", "experiments", "explain", "simulator", "events", "settings"]
TOKEN = "correct-horse-battery"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1"


@pytest.fixture(scope="module")
def vendor():
    with Vendor(sample_document()) as vendor:
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("gateway") / "data"
    with Gateway.of_vendor(data_dir, vendor, EVENTS_PER_REQUEST=50, FLUSH_EVENTS_INTERVAL=0.5) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def guarded(vendor, tmp_path_factory):
    with Gateway.of_vendor(tmp_path_factory.mktemp("guarded") / "data", vendor, ADMIN_TOKEN=TOKEN) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def launch():
    """Starts browsers, each with an empty profile of its own."""
    with sync_api.sync_playwright() as playwright:
        yield lambda *flags: playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])


@pytest.fixture(scope="module")
def browser(launch):
    ARTEFACTS.mkdir(exist_ok=True)
    with launch() as browser:
        yield browser


class Watch:
    """What a page did besides what a test looks at. `allowed` is a pattern of messages that a test provokes."""

    def __init__(self, page):
        self.problems = []
        self.requests = []
        self.allowed = None
        page.on("console", lambda m: m.type in ("error", "warning") and self.problems.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def allow(self, pattern):
        self.allowed = f"{self.allowed}|{pattern}" if self.allowed else pattern

    def check(self, *origins):
        problems = [text for text in self.problems if not (self.allowed and re.search(self.allowed, text))]
        assert problems == []
        foreign = [url for url in self.requests if not url.startswith((*origins, "data:"))]
        assert foreign == []


@pytest.fixture
def open_page(browser, gateway):
    """Opens pages; afterwards looks at what they did."""
    opened = []

    def open_one(path="/console", at=gateway, host="127.0.0.1", width=1280, height=860, **context):
        own = browser.new_context(viewport={"width": width, "height": height}, **context)
        if at is gateway and host == "127.0.0.1":
            own.add_cookies([session_of(gateway)])
        page = own.new_page()
        page.set_default_timeout(60_000)
        watch = Watch(page)
        origin = f"http://{host}:{at.port}"
        opened.append((page, watch, origin, at))
        page.goto(origin + path)
        page.watch = watch
        return page

    yield open_one
    for page, watch, origin, at in opened:
        page.context.close()
        if has_ended(at):
            watch.allow(r"net::ERR_")
        watch.check(origin)


def has_ended(gateway):
    """Whether a page can have asked this gateway after its end. Its test has checked what it was about by then."""
    process = getattr(gateway, "process", None)
    return process is not None and process.poll() is not None


def session_of(gateway):
    """The cookie of an operator who has signed in."""
    value = Auth(gateway.admin_token).new_session(time.time())
    return {"name": COOKIE, "value": value, "url": f"http://127.0.0.1:{gateway.port}"}


def show(page, tab):
    page.click(f"#tab-{tab}")
    expect(page.locator(f"#{tab}")).to_be_visible()


def picture(page, name, full_page=True):
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=full_page)


def fill_every_tab(page):
    """Every tab with something to see, the last one in view."""
    show(page, "features")
    page.click("summary:has-text('new-checkout')")
    show(page, "explain")
    page.fill("#explain-id", "user-1")
    page.fill("#explain-variables", '{"plan": "gold"}')
    page.click("#explain-form .primary")
    page.click(".decision summary:has-text('new-checkout')")
    show(page, "simulator")
    simulate(page, feature="new-checkout", weights="testingRule1=80/20")
    show(page, "events")


@contextmanager
def load_on(gateway, connections=4, pause_seconds=0.0):
    """Requests from these connections. A pause leaves the processors to the browser."""
    keys = [feature["key"] for feature in sample_document()["features"]]
    load = Load(
        gateway.port,
        lambda n: (
            "/server-side/getFlag",
            {"featureKey": keys[n % len(keys)], "userId": f"user-{n % 997}", "customVariables": {"plan": "gold"}},
        ),
        connections=connections,
        pause_seconds=pause_seconds,
    )
    thread = threading.Thread(target=lambda: asyncio.run(load.run()))
    thread.start()
    try:
        yield load
    finally:
        load.stopping = True
        thread.join()


def cursors_follow(page):
    """The cursor in one chart shows the time and the values of its moment in each of them, in the browser's zone."""
    area = page.locator(".chart .u-over").first
    box = area.bounding_box()
    area.hover(position={"x": box["width"] - 3, "y": 30})
    for at in page.locator(".chart .at").all():
        expect(at).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    page.mouse.move(0, 0)
    expect(page.locator(".chart .at").first).to_have_text("")


# Whether each chart has pixels of the colour of its first line.
DRAWN = """() => [...document.querySelectorAll(".chart")].map((chart) => {
  const wanted = getComputedStyle(chart.querySelector(".swatch")).color.match(/[0-9]+/g).map(Number);
  const canvas = chart.querySelector("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < data.length; at += 4)
    if (data[at + 3] === 255 && wanted.every((value, index) => Math.abs(value - data[at + index]) < 3)) return true;
  return false;
})"""


def number(text):
    return float(text.replace(",", "").replace("K", "e3").replace("M", "e6"))


# What it must show


def test_the_overview_moves_under_load(open_page, gateway):
    page = open_page()
    reading = page.locator(".chart .big").first
    expect(reading).to_have_text("0")
    expect(page.locator("#state")).to_contain_text("settings version 1 · 11 features")
    with load_on(gateway):
        expect(reading).to_have_text(re.compile(r"^[1-9]"))
        decisions = page.locator(".chart .legend-value").nth(1)
        expect(decisions).to_have_text(re.compile(r"^[1-9]"))
        page.wait_for_timeout(3000)
        picture(page, "overview")
        received = number(page.locator("#equation b").first.inner_text())
        expect(page.locator("#equation b").first).not_to_have_text(f"{received:,.0f}")
        assert page.evaluate(DRAWN) == [True] * 4
        cursors_follow(page)
    parts = [number(part) for part in page.locator("#equation b").all_inner_texts()]
    assert parts[0] == sum(parts[1:]) > received
    expect(page.locator("#workers tr")).to_have_count(1)


def test_the_range_of_all_charts_can_be_chosen_and_settings_changes_are_marked(open_page):
    """The markers are those of the overview's document. Samples of a day have gaps, which stay gaps."""
    asked = []
    now = int(time.time())

    def a_day(route):
        asked.append(route.request.url.partition("range=")[2])
        document = route.fetch().json()
        if asked[-1] == "24h":
            at = [now - 86_000 + 240 * row for row in range(359) if not 100 < row < 200]
            numbers = {name: [row % 50 for row in range(len(at))] for name in document["samples"]}
            document["samples"] = {**numbers, "at": at, "interval_seconds": 240}
            document["markers"] = [{"at": now - 7200, "label": "promo-banner: traffic 20 % → 100 %"}]
        route.fulfill(json=document)

    page = open_page()
    page.route("**/admin/overview?*", a_day)
    expect(page.locator("#charts canvas")).to_have_count(4)
    page.click("[data-range='24h']")
    expect(page.locator("[data-range][aria-pressed='true']")).to_have_text("24 h")
    expect(page.locator(".chart .legend-value").first).not_to_have_text("0")
    area = page.locator(".chart .u-over").nth(2)
    box = area.bounding_box()
    area.hover(position={"x": box["width"] * 11 / 12, "y": 40})
    expect(page.locator(".chart .marker")).to_have_count(4)
    expect(page.locator(".chart .marker").first).to_have_text("promo-banner: traffic 20 % → 100 %")
    picture(page, "overview-day")
    assert "24h" in asked
    page.unroute_all(behavior="wait")


def test_explain_shows_the_rule_that_decided_and_sends_nothing(open_page, gateway, vendor):
    page = open_page("/console#explain")
    before = gateway.status()["events"]["received"]
    page.select_option("#explain-feature", "new-checkout")
    page.fill("#explain-id", "user-1")
    page.fill("#explain-variables", '{"plan": "gold"}')
    page.fill("#explain-agent", IPHONE)
    page.click("#explain-form .primary")
    decision = page.locator(".decision")
    expect(decision).to_have_count(1)
    expect(decision.locator("summary")).to_contain_text("Two steps")
    deciding = decision.locator(".step.deciding > .line")
    expect(deciding).to_have_count(1)
    expect(deciding).to_contain_text("A/B test: One step or two for members")
    expect(deciding).to_contain_text("decides")
    path = decision.locator(".path")
    expect(path).to_contain_text("plan is gold")
    expect(path).to_contain_text('the visitor has "gold"')
    expect(path).to_contain_text("bucket 4108 of 10,000 gives Two steps")
    expect(path.locator(".buckets i.hit")).to_have_count(1)
    expect(page.locator(".visitor")).to_contain_text("iPhone")
    picture(page, "explain")
    assert gateway.status()["events"]["received"] == before


def test_explain_shows_true_and_false_of_each_node(open_page):
    page = open_page("/console#explain")
    page.select_option("#explain-feature", "loyalty")
    page.fill("#explain-id", "user-1")
    page.fill("#explain-variables", '{"customer": "member", "points": 6000, "referrer": "x"}')
    page.click("#explain-form .primary")
    path = page.locator(".path")
    expect(path.locator(".step-segment:has(> .line .yes)", has_text="points is greater than 5000").last).to_be_visible()
    expect(path.locator(".step-segment:has(> .line .no)", has_text="referrer contains partner").last).to_be_visible()
    expect(path.locator(".deciding")).to_contain_text("Many points")


def test_explain_of_all_features(open_page):
    page = open_page("/console#explain")
    page.fill("#explain-id", "user-1")
    page.press("#explain-id", "Enter")
    expect(page.locator(".decision")).to_have_count(11)
    page.click(".decision summary:has-text('recommendations')")
    expect(page.locator(".decision[open]")).to_contain_text("Holdout: Without recommendations")
    picture(page, "explain-all")


def test_the_simulator_shows_the_distribution_and_the_visitors_that_would_move(open_page, gateway):
    page = open_page()
    show(page, "simulator")
    received = gateway.status()["events"]["received"]
    simulate(page, feature="new-checkout", variables='{"plan": "gold"}', weights="testingRule1=80/20")
    cells = page.locator("#simulation table").first.locator("tbody tr", has_text="One step").locator("td")
    expect(cells.nth(5)).to_have_text("weight 50 %, traffic 100 %")
    expect(page.locator("#simulation .simulated-share .band")).to_have_count(6)
    expect(page.locator("#simulation li")).to_have_text(re.compile(r"One step \(testingRule1\) → Two steps .*: \d+"))
    assert gateway.status()["events"]["received"] == received
    picture(page, "simulator")
    gateway.post("/server-side/getFlag", {"featureKey": "new-checkout", "userId": "recent visitor"})
    page.select_option("#simulate-source", "recent")
    expect(page.locator("#simulate-count")).to_be_hidden()
    page.click("#simulate-start")
    expect(page.locator("#simulation")).to_contain_text(re.compile(r"enabled for \d+ of (?!1,000 )[\d,]+ visitor"))
    page.select_option("#simulate-source", "ids")
    page.click("#simulate-start")
    expect(page.locator("#simulate-problem")).to_contain_text("Enter the IDs of visitors")
    page.select_option("#simulate-source", "visitors")
    simulate(page, weights="testingRule1", expected="#simulate-weights[aria-invalid=true]")
    expect(page.locator("#simulate-problem")).to_contain_text("Expected a line such as testingRule1=80/20")
    simulate(page, feature="", weights="102=10/90", number=100_000, expected="#simulate-cancel:visible")
    expect(page.locator("#simulate-progress")).to_contain_text("of 100,000 visitors")
    page.click("#simulate-cancel")
    expect(page.locator("#simulate-problem")).to_have_text("cancelled")


def simulate(page, feature=None, variables=None, weights=None, number=1000, expected="#simulation .simulated"):
    if feature is not None:
        page.locator("#simulate-feature", has_text="new-checkout").select_option(feature)
    page.fill("#simulate-count", str(number))
    page.fill("#simulate-variables", variables or "")
    page.locator("#simulate-form details").evaluate("(details) => { details.open = true; }")
    page.fill("#simulate-weights", weights or "")
    page.click("#simulate-start")
    expect(page.locator(expected).first).to_be_visible()


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("#explain-id", "", "Enter a user ID"),
        ("#explain-variables", "{plan: gold}", "Custom variables: expected a JSON object"),
        ("#explain-variables", "[1]", "Custom variables: expected a JSON object"),
    ],
)
def test_a_mistake_in_the_form_is_named_and_focused(open_page, field, text, message):
    page = open_page("/console#explain")
    page.fill("#explain-id", "user-1")
    page.fill(field, text)
    page.click("#explain-form .primary")
    expect(page.locator("#explain-problem")).to_contain_text(message)
    expect(page.locator(field)).to_be_focused()
    expect(page.locator(field)).to_have_attribute("aria-invalid", "true")


def test_a_link_fills_the_form_and_explains(open_page, gateway):
    page = open_page("/console#explain")
    page.select_option("#explain-feature", "new-checkout")
    page.fill("#explain-id", "user-1 & co")
    page.fill("#explain-variables", '{"plan": "gold"}')
    page.click("#explain-form .primary")
    expect(page.locator(".decision")).to_have_count(1)
    assert re.fullmatch(r"#explain&featureKey=new-checkout&id=user-1.*", page.evaluate("location.hash"))
    assert "token" not in page.url
    page.get_by_role("button", name="Link").click()
    link = page.locator(".copied-text").inner_text()
    assert link == page.url
    other = open_page(link.removeprefix(f"http://127.0.0.1:{gateway.port}"))
    expect(other.locator(".decision")).to_have_count(1)
    expect(other.locator(".visitor")).to_contain_text("user-1 & co")
    expect(other.locator("#explain-feature")).to_have_value("new-checkout")
    expect(other.locator("#explain-variables")).to_have_value('{"plan":"gold"}')
    other.evaluate("location.hash = '#explain&featureKey=new-chekout&id=user-2&ipAddress=300.1.1.1'")
    expect(other.locator(".decision")).to_contain_text("Did you mean new-checkout?")
    expect(other.locator(".visitor")).to_contain_text("The IP address “300.1.1.1” is invalid")
    expect(other.locator("#explain-variables")).to_have_value("")


def test_two_visitors_are_compared_and_the_smallest_change_is_named(open_page):
    page = open_page("/console#explain&featureKey=dark-mode&id=user-1")
    expect(page.locator(".decision .change")).to_contain_text("raise the traffic of rolloutRule1 from 30 % to 80 %")
    page.get_by_role("button", name="Compare with another visitor").click()
    page.fill("#explain-id", "user-2")
    page.click("#explain-form .primary")
    sides = page.locator(".beside > div")
    expect(sides).to_have_count(2)
    expect(sides.nth(0).locator(".visitor")).to_contain_text("user-1")
    expect(sides.nth(1).locator(".visitor")).to_contain_text("user-2")
    picture(page, "explain-compared")
    page.get_by_role("button", name="End the comparison").click()
    expect(page.locator(".decision")).to_have_count(1)
    expect(page.locator(".visitor")).to_contain_text("user-2")


LOOPBACK = """
import socket
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *others, **options: resolve("127.0.0.1", *others, **options)
"""


def run_python(snippet, tmp_path):
    """The decision of a snippet that runs with the real SDK, which cannot leave this machine."""
    result = "\nimport json, os; print('RESULT', json.dumps([flag.is_enabled(), flag.get_variables()]), flush=True)"
    (tmp_path / "snippet.py").write_text(f"{LOOPBACK}{snippet}{result}; os._exit(0)\n")
    return result_of([sys.executable, tmp_path / "snippet.py"])


def run_node(snippet, tmp_path):
    shown = "console.log(flag.isEnabled(), flag.getVariables());"
    result = "console.log('RESULT', JSON.stringify([flag.isEnabled(), flag.getVariables()])); process.exit();"
    assert shown in snippet
    (tmp_path / "snippet.cjs").write_text(snippet.replace(shown, result))
    command = ["node", "--require", SDK / "loopback.cjs", tmp_path / "snippet.cjs"]
    return result_of(command, NODE_PATH=str(SDK / "node_modules"), VENDOR_TLS_PORT=str(free_port()))


def result_of(command, **environment):
    shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=60)
    lines = [line for line in shown.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, shown.stdout + shown.stderr
    return orjson.loads(lines[0].removeprefix("RESULT "))


def test_an_explained_decision_is_copied_for_other_tools(open_page, gateway, vendor, tmp_path):
    page = open_page("/console#explain&featureKey=new-checkout&id=o'hara&customVariables=%7B%22plan%22%3A%22gold%22%7D")
    texts = {}
    for form in ("Curl", "Command", "Node", "Python", "Go", "PHP", "Java"):
        page.get_by_role("button", name=form, exact=True).click()
        shown = page.locator(".copied-text")
        expect(shown).not_to_have_text(texts[next(reversed(texts))] if texts else "")
        texts[form] = shown.inner_text()
    url = f"http://127.0.0.1:{gateway.port}"
    flag = subprocess.run(["bash", "-c", texts["Curl"]], capture_output=True, check=True).stdout
    expected = {"featureKey": "new-checkout", "userId": "o'hara", "customVariables": {"plan": "gold"}}
    assert orjson.loads(flag) == gateway.post("/server-side/getFlag", expected)[1]
    (tmp_path / "settings.json").write_bytes(orjson.dumps(sample_document()))
    command = texts["Command"].replace("tornado-gateway", f"{sys.executable} -m tornado_gateway")
    decided = subprocess.run(["bash", "-c", command], capture_output=True, check=True, cwd=tmp_path).stdout
    assert orjson.loads(decided.splitlines()[0])["isEnabled"] == orjson.loads(flag)["isEnabled"]
    has_node = shutil.which("node") and (SDK / "node_modules").is_dir()
    for language, result in {"Python": run_python, **({"Node": run_node} if has_node else {})}.items():
        decided = result(texts[language].replace("'...'", f"'{KEY}'").replace('"..."', f'"{KEY}"'), tmp_path)
        assert (decided[0], decided[1]) == (orjson.loads(flag)["isEnabled"], orjson.loads(flag)["variables"]), language
    assert "'o\\'hara'" in texts["PHP"]
    assert 'map[string]interface{}{"plan": "gold"}' in texts["Go"]
    assert 'context.setId("o\'hara");' in texts["Java"]
    for form in ("Node", "Python", "Go", "PHP", "Java"):
        assert url in texts[form], form
        assert sample_document()["accountId"] is None or str(sample_document()["accountId"]) in texts[form], form


def test_a_dead_letter_is_requeued_and_delivered(open_page, gateway, vendor):
    vendor.event_faults.append(
        Fault(400, times=10_000, refuses=lambda event: "refused" in orjson.dumps(event).decode())
    )
    try:
        for note in ("refused 1", "refused 2"):
            event = {"d": {"visId": "X", "event": {"name": "refusedPurchase", "props": {"note": note}}}}
            assert gateway.post("/events/t", event)[0] == 200
        page = open_page("/console#events")
        expect(page.locator("#recent")).to_contain_text("refusedPurchase")
        gateway.wait_for_dead_letters(2)
        letters = page.locator("#dead-letters > li")
        expect(letters).to_have_count(2)
        expect(letters.first).to_contain_text("400 Bad Request")
        expect(page.locator("#dead-badge")).to_have_text("2")
        letters.first.locator("summary").click()
        expect(letters.first.locator("pre")).to_contain_text('"note": "refused')
        picture(page, "events")
    finally:
        vendor.event_faults.clear()
    before = len(vendor.events)
    letters.first.get_by_role("button", name="Requeue").click()
    expect(page.locator("#events-done")).to_contain_text("1 event requeued")
    expect(letters).to_have_count(1)
    page.click("#requeue-all")
    expect(letters).to_have_count(0)
    vendor.wait_until(lambda: [e["d"]["event"]["name"] for e in vendor.events[before:]].count("refusedPurchase") == 2)
    expect(page.locator("#dead-badge")).to_be_hidden()
    assert gateway.status()["events"]["dead"] == 0


def test_dead_letters_are_grouped_edited_and_deleted(open_page, gateway, vendor):
    fault = Fault(
        400, times=10_000, refuses=lambda event: "refused" in orjson.dumps(event).decode(), text="no such goal"
    )
    vendor.event_faults.append(fault)
    try:
        for name, note in (("groupedBuy", "refused 1"), ("groupedBuy", "refused 2"), ("groupedView", "refused 3")):
            event = {"d": {"visId": "X", "event": {"name": name, "props": {"note": note}}}}
            assert gateway.post("/events/t", event)[0] == 200
        gateway.wait_for_dead_letters(3)
        page = open_page("/console#events")
        groups = page.locator("#dead-groups > li")
        expect(groups).to_have_count(2)
        expect(groups.first).to_contain_text("groupedBuy")
        expect(groups.first).to_contain_text("2 events")
        expect(groups.first).to_contain_text("VWO: no such goal")
        picture(page, "dead-letters")
        with page.expect_download() as download:
            page.click("#export-dead")
        assert len(download.value.path().read_text().splitlines()) == 3
        page.get_by_role("button", name="Delete group").first.click()
        expect(groups).to_have_count(2)
        page.get_by_role("button", name="Really delete 2 events?").click()
        expect(page.locator("#events-done")).to_contain_text("2 events deleted")
        expect(groups).to_have_count(1)
        letter = page.locator("#dead-letters > li")
        expect(letter).to_have_count(1)
        letter.get_by_role("button", name="Edit").click()
        area = letter.locator("textarea")
        area.fill(area.input_value().replace("groupedView", "another"))
        letter.get_by_role("button", name="Save").click()
        expect(letter.locator(".problem")).to_contain_text("expected the name 'groupedView'")
        area.fill(area.input_value().replace("another", "groupedView").replace("refused 3", "corrected"))
        page.watch.allowed = "400"
        letter.get_by_role("button", name="Save").click()
        expect(page.locator("#events-done")).to_contain_text("1 event requeued")
        expect(letter).to_have_count(0)
        expect(groups).to_have_count(0)
    finally:
        vendor.event_faults.clear()
    vendor.wait_until(lambda: any("corrected" in orjson.dumps(event).decode() for event in vendor.events))
    assert gateway.status()["events"]["dead"] == 0


def test_recent_events_can_be_paused_and_opened(open_page, gateway):
    gateway.post("/server-side/getFlag", {"featureKey": "dark-mode", "userId": "first"})
    page = open_page("/console#events")
    newest = page.locator("#recent > li").first
    expect(newest).to_contain_text("vwo_variationShown")
    newest.locator("summary").click()
    page.click("#pause")
    shown = page.locator("#recent").inner_text()
    gateway.post("/server-side/getFlag", {"featureKey": "search-ranking", "userId": "second"})
    page.wait_for_timeout(2500)
    assert page.locator("#recent").inner_text() == shown
    page.click("#pause")
    expect(page.locator("#recent")).not_to_have_text(shown)
    expect(page.locator("#recent details[open]")).to_have_count(1)  # what was opened stays open


def settings_with(headline):
    settings = sample_document()
    settings["campaigns"][0]["variations"][0]["variables"][0]["value"] = headline
    return settings


def test_a_version_is_pinned_from_the_timeline_and_unpinned(open_page, tmp_path):
    """With an explanation by the former settings, and the pin in the head of the page."""
    options = {"POLLING_TIME": "500", "ADMIN_TOKEN": OPERATORS_TOKEN}
    with Vendor(settings_with("old")) as vendor, Gateway.of_vendor(tmp_path / "data", vendor, **options) as gateway:
        vendor.settings = orjson.dumps(settings_with("new"))
        page = open_page("/console#settings", at=gateway)
        page.watch.allowed = "401"  # before it signs in
        page.fill("#token", OPERATORS_TOKEN)
        page.click("#sign-in-form .primary")
        expect(page.locator("#versions > li")).to_have_count(2)
        newest, former = page.locator("#versions > li").first, page.locator("#versions > li").last
        newest.locator("summary").click()
        expect(newest.locator("ul")).to_contain_text('variable headline of variation Everyone "old" -> "new"')
        picture(page, "settings")
        show(page, "explain")
        page.fill("#explain-id", "user-1")
        page.select_option("#explain-feature", "new-checkout")
        page.select_option("#explain-version", index=1)
        page.click("#explain-form .primary")
        expect(page.locator(".decision-body").first).to_contain_text("old")
        show(page, "settings")
        former.get_by_role("button").click()
        expect(page.locator("#pin-reason")).to_be_focused()
        page.keyboard.type(f"checkout is broken: {'x' * 150}")
        page.select_option("#pin-seconds", "7200")
        picture(page, "settings-pin")
        assert faults(page) == []
        page.click("#pin-form .primary")
        expect(page.locator("#pin-badge")).to_be_visible()
        expect(page.locator("#pin-hint")).to_contain_text("(checkout is broken: x")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        expect(page.locator("#state")).to_contain_text("pinned to")
        expect(former).to_contain_text("in use")
        picture(page, "settings-pinned")
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#unpin")
        expect(page.locator("#pin-badge")).to_be_hidden()
        expect(page.locator("#pin-hint")).to_have_text("No version is pinned: the gateway follows VWO.")
        page.goto("about:blank")  # it must not ask a gateway that has ended


def test_features_read_as_rules_and_can_be_filtered(open_page):
    page = open_page("/console#features")
    expect(page.locator(".feature:visible")).to_have_count(11)
    page.fill("#filter", "gold")
    expect(page.locator(".feature:visible")).to_have_count(1)
    expect(page.locator("#feature-count")).to_have_text("1 of 11 features")
    page.click(".feature:visible summary")
    body = page.locator(".feature:visible .feature-body")
    expect(body).to_contain_text("plan is gold or silver")
    expect(body).to_contain_text("buckets 5001–10000")
    expect(body).to_contain_text("purchase, addToCart")
    picture(page, "features")
    page.fill("#filter", "nothing like this")
    expect(page.locator(".feature:visible")).to_have_count(0)
    page.fill("#filter", "")
    expect(page.locator(".feature:visible")).to_have_count(11)
    body.get_by_role("button", name="Explain for a visitor").click()
    expect(page.locator("#explain-feature")).to_have_value("new-checkout")
    expect(page.locator("#explain-id")).to_be_focused()


@needs_redis_server
def test_h1_numbers_of_a_paused_redis_are_unknown(open_page, tmp_path):
    """Row H1: the page showed "Dead letters: None", and counts that did not add up."""
    with Vendor(sample_document()) as vendor, RedisServer(tmp_path / "redis") as redis:
        vendor.event_faults.append(Fault(503, times=10**6))
        options = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port, "SOCKET_TIMEOUT": 1}
        with Gateway.of_vendor(tmp_path / "data", vendor, **options) as own:
            own.post("/server-side/trackEvent", {"eventName": "purchase", "userId": "user-1"})
            vendor.wait_until(lambda: own.status()["events"]["waiting"] == 1, describe=own.status)
            redis.pause()
            vendor.wait_until(lambda: own.status()["events"]["waiting"] is None, describe=own.status)
            page = open_page(at=own)
            page.fill("#token", own.admin_token)
            page.click("#sign-in-form .primary")
            page.watch.allowed = "401"
            equation = page.locator("#equation")
            expect(equation).to_contain_text("? waiting +? dead")
            expect(equation).to_contain_text("1 unknown")
            panels = page.locator("#panels")
            expect(panels).to_contain_text(re.compile(r"Dead letters\s*unknown, last known 0 \(\d+ s ago\)"))
            expect(page.locator("#dead-badge")).to_have_text("?")
            expect(page.locator("#problem-list")).to_contain_text("dead events are unknown, last known")
            runbook = page.locator("#problem-list a[href='/docs/operating#redis-unreachable']")
            expect(runbook).to_have_text("Runbook")
            expect(page.locator("#state")).to_have_class("state warn")
            for name in ("Delivery", "Store"):
                expect(panels.locator(".panel", has_text=name).locator(".pill.good")).to_have_count(0)
            picture(page, "unknown")
            show(page, "events")
            expect(page.locator("#dead-hint")).to_contain_text("Dead events: unknown, last known 0")
            expect(page.locator("#dead-hint")).to_contain_text("Not all can be read: Redis at")
            check_missing_letters(own)
            redis.resume()
            expect(page.locator("#dead-hint")).to_contain_text("No dead letters")
            show(page, "overview")
            expect(equation).to_contain_text("1 waiting +0 dead")
            page.goto("about:blank")  # it must not ask a gateway that has ended


def check_missing_letters(gateway):
    """Dead letters that cannot be read are not left out silently, and nothing is done with a part of them."""
    for path in ("/admin/events", "/admin/events/groups"):
        status, body = gateway.get(path, gateway.admin_headers)
        assert status == 200
        assert "no response within" in body["unreadable"], path
    assert gateway.get("/admin/events/export", gateway.admin_headers)[0] == 503
    group = {"event": "purchase", "reason": "any"}
    for path, body in (("requeue", group), ("discard", {"ids": None}), ("edit", {"id": "1-0", "event": {}})):
        headers = {"Content-Type": "application/json", **gateway.admin_headers}
        status, response = gateway.request("POST", f"/admin/events/{path}", orjson.dumps(body), headers)
        assert status == 503, path
        assert "can" in response["error"]


def test_h6_a_broken_location_database_is_not_green(open_page, tmp_path):
    """Row H6: the page was green. The problem has its remedy. Of a gateway that has ended, nothing is green either."""
    broken = tmp_path / "broken.mmdb"
    broken.write_bytes(b"not a database")
    own_data, options = tmp_path / "data", {"MAXMIND_DB_PATH": broken}
    with Vendor(sample_document()) as vendor, Gateway.of_vendor(own_data, vendor, **options) as own:
        page = open_page(at=own)
        page.fill("#token", own.admin_token)
        page.click("#sign-in-form .primary")
        page.watch.allowed = "401"
        expect(page.locator("#state")).to_contain_text(f"Location database: {broken}")
        expect(page.locator("#problem-list li")).to_have_count(1)
        expect(page.locator("#problem-list")).to_contain_text("Replace the file")
        expect(page.locator(".panel:has-text('Location') .pill.warn")).to_have_text("problem")
        picture(page, "problems")
        expect(page.locator(".panel:has-text('Store') .pill.good")).to_have_text("up")
        green = page.evaluate("getComputedStyle(document.querySelector('.pill.good')).color")
        own.kill()
        expect(page.locator("#state-text")).to_have_text(
            re.compile(r"^the gateway does not respond, the numbers are of \d\d:\d\d:\d\d$")
        )
        assert page.evaluate("getComputedStyle(document.querySelector('.pill.good')).color") != green
        picture(page, "silent")


# Wherever it is looked at


def test_an_environment_can_be_chosen(open_page, tmp_path):
    with KeyedVendor() as vendor, gateway_of(tmp_path, vendor, *three(), ADMIN_TOKEN=TOKEN) as gateway:
        vendor.environments[KEYS["staging"]] = document(111, KEYS["staging"], version=77)
        path = "/ready?environment=staging"
        vendor.wait_until(
            lambda: gateway.get(path)[0] == 200 and statuses(gateway)["staging"]["settings"]["version"] == 77
        )
        page = open_page(at=gateway)
        page.fill("#token", TOKEN)
        page.click("#sign-in-form .primary")
        expect(page.locator("#environment option")).to_have_text(list(KEYS))
        expect(page.locator("#charts-scope")).to_have_text("The charts are of all environments.")
        expect(page.locator("#charts-scope")).to_be_visible()
        expect(page.locator("#state-text")).to_contain_text("account 111 · settings version 1 ")
        page.select_option("#environment", "staging")
        expect(page.locator("#state-text")).to_contain_text("settings version 77")
        page.select_option("#environment", "other")
        expect(page.locator("#state-text")).to_contain_text("account 222")
        page.evaluate("location.hash = '#explain&id=user-1&environment=staging'")
        expect(page.locator(".visitor")).to_contain_text("user-1")
        expect(page.locator("#state-text")).to_contain_text("settings version 77")
        assert "environment=staging" in page.evaluate("location.hash")
        page.watch.allowed = "401"  # before signing in
        page.goto("about:blank")  # it must not ask a gateway that has ended


def outside_of(page):
    """The elements that end beyond the right edge of the window."""
    return page.evaluate(
        "[...document.querySelectorAll('header button, header a, main *')].filter((e) => {"
        " const b = e.getBoundingClientRect();"
        " return b.width && b.right > innerWidth + 1 && !e.closest('.scroll, .tabs, pre, svg, .for-readers'); })"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )


def test_nothing_is_wider_than_a_phone(open_page):
    page = open_page(width=375, height=740)
    fill_every_tab(page)
    for tab in TABS:
        show(page, tab)
        widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1], tab
        assert outside_of(page) == [], tab
        picture(page, f"phone-{tab}")
    page.set_viewport_size({"width": 320, "height": 700})
    for tab in TABS:
        show(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
    page.set_viewport_size({"width": 375, "height": 740})
    page.goto(page.url.replace("/console", "/docs").split("#")[0])
    page.click("summary:has-text('getFlag')")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture(page, "phone-docs", full_page=False)


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    expect(page.locator("#overview")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    expect(page.locator("#overview")).to_be_visible()
    page.focus("#tab-overview")
    for key, tab in (
        ("ArrowRight", "features"),
        ("ArrowRight", "experiments"),
        ("ArrowRight", "explain"),
        ("End", "settings"),
        ("ArrowRight", "overview"),
    ):
        page.keyboard.press(key)
        expect(page.locator(f"#tab-{tab}")).to_be_focused()
        expect(page.locator(f"#{tab}")).to_be_visible()
        assert page.locator("[role=tab][aria-selected=true]").get_attribute("id") == f"tab-{tab}"
    page.keyboard.press("2")
    expect(page.locator("#features")).to_be_visible()
    page.keyboard.press("/")
    expect(page.locator("#filter")).to_be_focused()
    page.keyboard.type("loyalty 1")  # a digit in a field is a digit
    expect(page.locator("#features")).to_be_visible()
    page.keyboard.press("Backspace")
    page.keyboard.press("Tab")
    expect(page.locator(".feature:visible summary")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".feature[open]")).to_have_count(1)
    page.focus("#tab-features")
    page.keyboard.press("4")
    page.keyboard.press("Tab")
    expect(page.locator("#explain-feature")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("user-1")
    page.keyboard.press("Enter")
    expect(page.locator(".decision").first).to_be_visible()


def test_back_goes_back(open_page):
    page = open_page()
    show(page, "features")
    show(page, "events")
    page.go_back()
    expect(page.locator("#features")).to_be_visible()
    page.reload()
    expect(page.locator("#features")).to_be_visible()


def brightness(page):
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    return (red + green + blue) / 3


def test_colours_follow_the_system_and_the_button(open_page):
    page = open_page(color_scheme="dark")
    assert brightness(page) < 60
    expect(page.locator("#charts .big").first).to_be_visible()
    picture(page, "overview-dark")
    button = page.get_by_role("button", name="Colours")
    button.click()
    assert brightness(page) > 200
    page.reload()
    assert brightness(page) > 200  # remembered
    button.click()
    assert brightness(page) < 60
    assert brightness(open_page(color_scheme="light")) > 200


WIDTHS = [1280, 360]


def look_at(page, name, full_page=True):
    """Take a picture, light and dark. The page is as wide as the window, and axe finds nothing."""
    page.emulate_media(color_scheme="light")
    picture(page, f"{name}-light", full_page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    assert faults(page, "moderate") == [], name
    page.emulate_media(color_scheme="dark")
    picture(page, f"{name}-dark", full_page)
    assert faults(page, "moderate", rules=COLOURS) == [], name


def look_at_tabs(page, name, tabs=TABS):
    for tab in tabs:
        show(page, tab)
        page.wait_for_timeout(400)  # until it has been filled
        look_at(page, f"{name}-{tab}", full_page=tab != "features")


@pytest.mark.parametrize("width", WIDTHS)
def test_each_page_is_legible(open_page, guarded, width):
    page = open_page(width=width)
    fill_every_tab(page)
    look_at_tabs(page, f"usual-{width}")
    docs = open_page("/docs#get_flag", width=width)
    docs.locator("#get_flag[open] .try").get_by_role("button", name="Send").click()
    expect(docs.locator(".try .pill")).to_have_text("200")
    look_at(docs, f"docs-{width}", full_page=False)
    runbook = open_page("/docs/operating#events-dead", width=width)
    expect(runbook.locator(".target")).to_have_text("GatewayDeadLetters")
    expect(runbook.locator(".target")).to_be_in_viewport()
    look_at(runbook, f"runbook-{width}", full_page=False)
    runbook.goto(runbook.url.replace("#events-dead", "#key-refused"))
    expect(runbook.locator(".target")).to_contain_text("VWO rejects the SDK key (4xx)")
    locked = open_page(at=guarded, width=width)
    locked.watch.allowed = "401"
    expect(locked.locator("#sign-in")).to_be_visible()
    look_at(locked, f"sign-in-{width}", full_page=False)


def crowded_document():
    """200 features; the names of one, its campaign and its variation have 300 characters without a space."""
    document = sample_document()
    base, long = document["features"], "x" * 300
    document["features"] += [{**base[n % 3], "id": 1000 + n, "key": f"feature-{n:03}"} for n in range(200 - len(base))]
    first, campaign = base[0], next(one for one in document["campaigns"] if one["id"] == 102)
    document["features"].insert(1, {**first, "id": 3000, "key": f"key-{long}", "name": f"name-{long}"})
    campaign["name"] = campaign["variations"][0]["name"] = long
    return document


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A gateway on Redis with many features, dead letters and long names; with its vendor and its Redis."""
    with Vendor(crowded_document()) as vendor, RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        vendor.event_faults.append(Fault(400, times=10**6, refuses=lambda event: "refused" in str(event)))
        options = {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": redis.port,
            "SOCKET_TIMEOUT": 1,
            "FLUSH_EVENTS_INTERVAL": 0.5,
        }
        with Gateway.of_vendor(tmp_path_factory.mktemp("crowded") / "data", vendor, **options) as own:
            for name in (f"refused-{'y' * 300}", "refused"):
                own.post("/events/t", {"d": {"visId": "z" * 300, "event": {"name": name}}})
            own.wait_for_dead_letters(2)
            yield own, vendor, redis


@needs_redis_server
@pytest.mark.parametrize("width", WIDTHS)
def test_each_tab_is_legible_with_many_features_long_names_and_load(open_page, crowded, width):
    own, _, _ = crowded
    page = signed_in(open_page, own, width=width, height=780)
    with load_on(own, connections=2, pause_seconds=0.02):
        show(page, "features")
        page.locator("summary:has-text('key-xxx')").click()
        show(page, "explain")
        page.select_option("#explain-feature", f"key-{'x' * 300}")
        page.fill("#explain-id", "w" * 300)
        page.click("#explain-form .primary")
        show(page, "events")
        page.click("#live-toggle")
        expect(page.locator("#live-rows .live-row").nth(20)).to_be_visible()
        look_at_tabs(page, f"crowded-{width}")


@needs_redis_server
@pytest.mark.parametrize("width", WIDTHS)
def test_faults_are_legible(open_page, crowded, width):
    own, vendor, redis = crowded
    page = signed_in(open_page, own, width=width, height=780)
    vendor.event_faults.appendleft(Fault(503, times=10**6))
    try:
        own.post("/server-side/trackEvent", {"eventName": "purchase", "userId": "user-1"})
        expect(page.locator("#panels")).to_contain_text("503")
        look_at_tabs(page, f"vendor-down-{width}", ["overview"])
        redis.pause()
        expect(page.locator("#equation")).to_contain_text("? waiting")
        look_at_tabs(page, f"redis-paused-{width}", ["overview", "experiments", "events", "settings"])
        expect(page.locator("#versions-hint")).to_contain_text("The versions cannot be read: Redis at")
        expect(page.locator("#pin-hint")).to_have_text("No version is pinned: the gateway follows VWO.")
        show(page, "experiments")
        expect(page.locator("#experiment-count")).to_contain_text("Not all visitors can be read: Redis at")
    finally:
        redis.resume()
        vendor.event_faults.popleft()
    show(page, "overview")
    expect(page.locator("#equation")).not_to_contain_text("? waiting")


def test_problems_of_several_environments_are_legible(open_page, tmp_path):
    """Each with its own: a rejected key, dead letters, settings that cannot be used."""
    with KeyedVendor() as vendor, gateway_of(tmp_path, vendor, *three(), ADMIN_TOKEN=TOKEN) as gateway:
        vendor.wait_until(lambda: all(one["settings"] for one in statuses(gateway).values()))
        vendor.event_faults.append(Fault(400, times=10**6, refuses=lambda event: "refused" in str(event)))
        event = {"eventName": "purchase", "userId": "user-1", "eventProperties": {"note": "refused"}}
        assert gateway.post(f"/server-side/trackEvent?sdkKey={KEYS['staging']}", event)[0] == 200
        vendor.environments[KEYS["other"]] = document(999, KEYS["other"])
        vendor.environments.pop(KEYS["production"])

        def problems():
            good = {"eventName": "purchase", "userId": "user-2"}  # an event dies only while others succeed
            gateway.post(f"/server-side/trackEvent?sdkKey={KEYS['staging']}", good)
            return {(problem["code"], problem["environment"]) for problem in gateway.status()["problems"]}

        unusable = {("settings-unusable", "production"), ("settings-unusable", "other")}
        vendor.wait_until(lambda: problems() >= {*unusable, ("events-dead", "staging")}, describe=problems)
        for width in WIDTHS:
            page = signed_in(open_page, gateway, width=width)
            expect(page.locator("#problem-list li").nth(2)).to_be_visible()
            for name in KEYS:
                expect(page.locator("#problem-list")).to_contain_text(f"{name}: ")
            look_at(page, f"environments-{width}")
            page.select_option("#environment", "staging")
            expect(page.locator("#panels")).to_contain_text("Dead letters")
            show(page, "events")
            expect(page.locator("#dead-groups")).to_contain_text("purchase")
            look_at(page, f"environments-{width}-events")
            page.goto("about:blank")  # it must not ask a gateway that has ended


def signed_in(open_page, gateway, **options):
    page = open_page(at=gateway, **options)
    page.watch.allowed = "401|503"  # before signing in, and while Redis is paused
    page.fill("#token", gateway.admin_token)
    page.click("#sign-in-form .primary")
    expect(page.locator("#overview")).to_be_visible()
    return page


def test_decisions_are_watched_live_and_explained(open_page, gateway):
    page = open_page("/console#events")
    page.fill("#live-user", "watched")
    page.select_option("#live-outcome", "enabled")
    page.click("#live-toggle")
    rows = page.locator("#live-rows button.live-row")

    def has_come():
        gateway.post("/server-side/getFlag", {"featureKey": "dark-mode", "userId": "other"})
        gateway.post("/server-side/getFlag", {"featureKey": "new-checkout", "userId": "watched-1"})
        page.wait_for_timeout(200)
        return rows.count() > 0

    assert any(has_come() for _ in range(100))
    expect(rows.first).to_contain_text("new-checkout")
    expect(page.locator("#live-rows")).not_to_contain_text("other")
    page.click("#live-toggle")
    expect(page.locator("#live-hint")).to_have_text("Paused.")
    shown = rows.count()
    gateway.post("/server-side/getFlag", {"featureKey": "new-checkout", "userId": "watched-2"})
    page.wait_for_timeout(1000)
    assert rows.count() == shown
    rows.first.click()
    expect(page.locator("#explanation")).to_contain_text("new-checkout")
    expect(page.locator("#explain-id")).to_have_value("watched-1")


AXE = Path(axe.__file__).with_name("axe.min.js")


# The rules that depend on colours, for a page that has been checked in other colours.
COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}


def faults(page, *impacts, rules=None):
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text() + "; undefined")  # by the driver: the page's policy lets no other script in
    options = {"resultTypes": ["violations"], "preload": False, "iframes": False}  # the pages have no frames
    options |= {"runOnly": rules} if rules else {}
    found = page.evaluate("(options) => axe.run(document, options)", options)
    return [
        (fault["id"], [node["html"][:120] for node in fault["nodes"][:3]])
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical", *impacts)
    ]


def test_h8_stuck_events_are_a_problem_on_the_overview(open_page, vendor, tmp_path):
    """Row H8. The delivery of the worker has ended without an error."""
    options = {"DECISION_REQUIRED": "true", "FLUSH_EVENTS_INTERVAL": "0.2"}
    with InProcess(tmp_path / "data", vendor, 1.0, **options) as one:
        one.call(lambda: one.worker.environments.default.flusher.stop(0))
        one.track(3)
        page = open_page(at=one)
        page.watch.allowed = "401"
        page.fill("#token", OPERATORS_TOKEN)
        page.press("#token", "Enter")
        expect(page.locator("#state-text")).to_contain_text("Events are stuck: 3 waiting", timeout=60_000)
        delivery = page.locator("#panels .panel", has=page.get_by_role("heading", name="Delivery"))
        expect(delivery.locator(".pill.bad")).to_have_text("stuck")
        expect(delivery.locator("dd.bad")).to_contain_text("delivery reports no error")
        page.goto("about:blank")  # it must not ask a gateway that has ended


def impressions(campaign, variations):
    """A batch of an SDK: visitors with these variations."""
    visitors = [core.visitor_uuid("1", f"visitor-{number}") for number in range(len(variations))]
    shown = [{"vwo_envKey": sample_document()["sdkKey"], "id": campaign, "variation": each} for each in variations]
    return [
        {"d": {"msgId": f"{one}-1", "visId": one, "event": {"name": "vwo_variationShown", "props": props}}}
        for one, props in zip(visitors, shown, strict=True)
    ]


def test_experiments_with_wrong_shares_come_first(open_page, guarded):
    batch = {"ev": impressions(122, [1, 2] * 600) + impressions(102, [1, 1, 2] * 500)}
    path = f"/server-side/batch-events-v2?a={sample_document()['accountId']}"
    guarded.request("POST", path, orjson.dumps(batch), {"Authorization": sample_document()["sdkKey"]})
    guarded.post("/server-side/getFlag", {"featureKey": "new-checkout", "userId": "user-1"})
    guarded.post("/server-side/getFlag", {"featureKey": "no-such-feature", "userId": "user-1"})
    page = open_page("/console#experiments", at=guarded)
    page.watch.allowed = "401"
    page.fill("#token", TOKEN)
    page.press("#token", "Enter")
    cards = page.locator("#experiment-list > article")
    expect(page.locator("#experiment-count")).to_have_text("7 experiments, 1 with a sample ratio mismatch")
    first = cards.first
    expect(first.locator(".pill")).to_have_text("mismatch")
    expect(first).to_contain_text("One step or two for members")
    expect(first).to_contain_text("66.")
    expect(first).to_contain_text("50 %")
    expect(page.locator("[data-verdict='as configured']")).to_have_count(1)
    expect(page.locator("[data-verdict='too few visitors']")).to_have_count(5)
    assert faults(page) == []
    picture(page, "experiments")
    show(page, "features")
    usage = page.locator("[data-usage='new-checkout']")
    expect(usage).to_contain_text("1 decision: ", timeout=60_000)
    expect(usage).to_contain_text("per minute")
    expect(page.locator("#unknown-keys")).to_have_text("Requested keys that no feature has: no-such-feature (1)")
    picture(page, "features-usage")


# Who may


def test_signing_in_and_out(open_page, guarded):
    page = open_page(at=guarded)
    page.watch.allowed = "401"
    expect(page.locator("#sign-in")).to_be_visible()
    for tab in TABS:
        expect(page.locator(f"#{tab}")).to_be_hidden()
    picture(page, "sign-in", full_page=False)
    page.fill("#token", "wrong")
    page.press("#token", "Enter")
    expect(page.locator("#sign-in-problem")).to_contain_text("ADMIN_TOKEN")
    page.fill("#token", TOKEN)
    page.press("#token", "Enter")
    expect(page.locator("#overview")).to_be_visible()
    expect(page.locator("#equation")).to_contain_text("received")
    page.reload()
    expect(page.locator("#equation")).to_contain_text("received")
    [cookie] = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert page.evaluate("document.cookie") == ""
    assert not [url for url in page.watch.requests if TOKEN in url]
    assert TOKEN not in page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})")
    page.click("#sign-out")
    expect(page.locator("#sign-in")).to_be_visible()
    expect(page.locator("#overview")).to_be_hidden()
    assert page.context.cookies() == []


def test_f1_under_a_foreign_name_the_console_shows_nothing(open_page):
    """Row F1: a hostile page may have a name of its own that suddenly points to this machine."""
    page = open_page(host="gateway.example")
    page.watch.allowed = "401"
    expect(page.locator("#sign-in")).to_be_visible()
    assert page.evaluate("fetch('/admin/overview').then((r) => r.status)") == 401


def command_link(gateway):
    """The output of `tornado-gateway console-url`."""
    command = [sys.executable, "-m", "tornado_gateway", "console-url"]
    return subprocess.run(command, env=gateway._environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def blank_page(browser):
    """A page of somebody who has not signed in anywhere."""
    page = browser.new_context().new_page()
    page.set_default_timeout(15_000)
    yield page
    page.context.close()


def test_f1_the_link_of_the_command_signs_in(blank_page, gateway):
    """Row F1: the token leaves the address bar, is sent to no server in an address, and is not stored."""
    page, sent = blank_page, []
    page.on("request", lambda request: sent.append(request))
    link = command_link(gateway)
    page.goto(link)
    expect(page.locator("#overview")).to_be_visible()
    expect(page.locator("#equation")).to_contain_text("received")
    assert page.url == f"http://127.0.0.1:{gateway.port}/console"
    token = gateway.admin_token
    assert link.endswith(f"#token={token}")
    assert not [one.url for one in sent if token in one.url.partition("#")[0] + one.headers.get("referer", "")]
    assert [one.url for one in sent if token in (one.post_data or "")] == [page.url.replace("console", "admin/session")]
    assert token not in page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})")
    page.goto("about:blank")
    page.go_back()
    expect(page.locator("#overview")).to_be_visible()
    assert token not in page.url


def test_f1_the_link_signs_in_a_console_that_is_open_already(blank_page, gateway):
    """Row F1: only the part behind # changes, so the browser loads no page."""
    page = blank_page
    page.goto(f"http://127.0.0.1:{gateway.port}/console")
    expect(page.locator("#sign-in")).to_be_visible()
    page.goto(command_link(gateway))
    expect(page.locator("#overview")).to_be_visible()
    assert gateway.admin_token not in page.url
    page.click("#sign-out")
    expect(page.locator("#sign-in")).to_be_visible()
    page.goto(command_link(gateway))
    expect(page.locator("#overview")).to_be_visible()
    assert gateway.admin_token not in page.url


def test_f1_a_link_with_a_wrong_token_says_so(blank_page, gateway):
    """Row F1."""
    blank_page.goto(f"http://127.0.0.1:{gateway.port}/console#token=wrong-token-0123456789")
    expect(blank_page.locator("#sign-in-problem")).to_contain_text("wrong admin token")
    expect(blank_page.locator("#sign-in")).to_be_visible()
    expect(blank_page.locator("#overview")).to_be_hidden()
    assert "wrong-token" not in blank_page.url


def test_another_sites_page_can_read_and_change_nothing(open_page, gateway):
    page = open_page("/health", host="gateway.example")  # some other origin
    page.watch.allowed = "."
    own = f"http://127.0.0.1:{gateway.port}"
    page.watch.requests.clear()
    tried = page.evaluate(
        """async (own) => {
            const post = {method: "POST", body: '{"ids": null}'};
            const json = {"Content-Type": "application/json"};
            const tries = [
                fetch(own + "/admin/overview").then((r) => r.text()),
                fetch(own + "/admin/events/requeue", {...post, headers: json}).then((r) => r.text()),
                fetch(own + "/admin/events/requeue", {...post, mode: "no-cors"}).then((r) => r.type + r.status),
            ];
            return Promise.all(tries.map((one) => one.catch(() => "refused")));
        }""",
        own,
    )
    assert tried[:2] == ["refused", "refused"]
    assert tried[2] in ("refused", "opaque0")
    page.watch.requests.clear()
    frame = page.evaluate(
        """(own) => new Promise((done) => {
            const frame = document.createElement("iframe");
            frame.onload = () => done(frame.contentDocument === null ? "foreign" : frame.contentDocument.title);
            frame.src = own + "/console";
            document.body.append(frame);
        })""",
        own,
    )
    assert frame == "foreign"
    assert "frame-ancestors" in " ".join(page.watch.problems)
    page.watch.requests.clear()


# The API page


def test_the_api_page_describes_and_tries(open_page):
    page = open_page("/docs")
    page.fill("#filter", "trackEvent")
    expect(page.locator(".operation")).to_have_count(1)
    page.fill("#filter", "getFlag")
    expect(page.locator(".operation")).to_have_count(2)
    page.locator(".operation summary").first.click()
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".try pre")).to_contain_text('"isEnabled": true')
    picture(page, "docs")
    page.fill("#filter", "")
    assert page.locator(".operation").count() > 25
    page.click("#contents a:has-text('/get-user-details')")
    expect(page.locator("#get_user_details")).to_have_attribute("open", "")


def test_the_api_page_copies_requests_that_curl_sends(open_page, gateway, vendor):
    """The events of a request are real, which the form says."""
    page = open_page("/docs#evaluate_flag")
    form = page.locator("#evaluate_flag .try")
    expect(form.locator(".note")).to_contain_text("Sends real events to VWO: the impressions of the decision.")
    form.get_by_label("Body").fill('{"context": {"targetingKey": "o\'hara", "plan": "gold"}}')
    commands = {"evaluate_flag": copied_command(form)}
    form.get_by_role("button", name="Send").click()
    expect(form.locator(".pill")).to_have_text("200")
    for name in ("get_user_details", "stream_changes", "list_features"):
        page.goto(page.url.split("#")[0] + f"#{name}")
        form = page.locator(f"#{name} .try")
        expect(form.locator(".note")).to_have_count(0)
        if name == "stream_changes":
            form.get_by_label("Last-Event-ID").fill("1")
        commands[name] = copied_command(form)
    expect(page.locator("#list_features summary .pill")).to_have_text(["token", "unstable"])
    assert "-H 'Last-Event-ID: 1'" in commands.pop("stream_changes")
    results = {name: orjson.loads(run_command(command, gateway)) for name, command in commands.items()}
    assert results["evaluate_flag"]["key"] == "new-checkout"
    assert "userAgent" in results["get_user_details"]
    assert results["list_features"]["features"]
    vendor.wait_until(lambda: core.visitor_uuid("123456", "o'hara") in str(vendor.events))


def copied_command(form):
    form.get_by_role("button", name="Copy as curl").click()
    return form.locator(".copied-text").inner_text()


def run_command(command, gateway):
    environment = {**os.environ, "ADMIN_TOKEN": gateway.admin_token}
    return subprocess.run(["bash", "-c", command], capture_output=True, check=True, env=environment).stdout


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_the_api_page_is_legible_with_operations_of_each_kind(open_page, width, scheme):
    """With parameters in the path, the query and a header; with events, a token, large schemas and long errors."""
    page = open_page("/docs", width=width, color_scheme=scheme)
    names = [
        "evaluate_flag",
        "send_event_batch",
        "stream_changes",
        "refresh_settings",
        "list_events",
        "edit_dead_letter",
    ]
    for name in names:
        page.locator(f"#{name} summary").click()
    expect(page.locator(".try")).to_have_count(len(names))
    copied_command(page.locator("#evaluate_flag .try"))
    assert (brightness(page) < 60) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert outside_of(page) == []
    expect(page.locator("#evaluate_flag .hint code").first).to_have_text("feature")  # in backticks in the document
    assert faults(page) == []
    picture(page, f"docs-{width}-{scheme}", full_page=False)


# Nobody else is asked


def test_the_browser_asks_no_other_host(launch, gateway, tmp_path):
    """From the browser's own log of its network, which has what pages do not see as well."""
    log = tmp_path / "net.json"
    origin = f"http://127.0.0.1:{gateway.port}"
    with launch(f"--log-net-log={log}") as browser:
        context = browser.new_context()
        context.add_cookies([session_of(gateway)])
        page = context.new_page()
        page.goto(f"{origin}/console")
        fill_every_tab(page)
        page.goto(f"{origin}/docs")
        expect(page.locator(".operation").first).to_be_visible()
    # The browser also asks its maker by itself, but then no page is the initiator.
    asked = [event["params"] for event in orjson.loads(log.read_bytes())["events"] if "url" in event.get("params", {})]
    urls = {request["url"] for request in asked if request.get("initiator") == origin}
    assert f"{origin}/admin/overview?range=5m" in urls
    assert [url for url in urls if not url.startswith((f"{origin}/", "data:"))] == []


def test_the_picture_of_the_readme_is_small():
    picture = Path(__file__).parents[2] / "docs" / "images" / "console.png"
    assert os.path.getsize(picture) < 300 * 1024
