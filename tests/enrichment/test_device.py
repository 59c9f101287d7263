import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest

from tornado_gateway.enrichment.device import DeviceReader
from tornado_gateway.errors import ConfigError

CASES = json.loads((Path(__file__).parents[1] / "data" / "user_agents.json").read_text("utf-8"))
KEYS = {"os", "os_version", "browser_string", "browser_version", "device_type", "device", "ps"}
CHROME_WINDOWS = CASES[0]["user_agent"]
PIXEL = next(case["user_agent"] for case in CASES if case["id"] == "chrome-pixel")
APPLE_TV = next(case["user_agent"] for case in CASES if case["id"] == "apple-tv")
IPAD = next(case["user_agent"] for case in CASES if case["id"] == "safari-ipad")


@pytest.fixture(scope="module")
def device() -> DeviceReader:
    return DeviceReader()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_facts(device, case):
    assert device.facts(case["user_agent"]) == case["facts"]
    assert orjson.loads(device.encoded(case["user_agent"])) == case["facts"]


@pytest.mark.parametrize(
    "agent",
    [
        "",
        " ",
        "\0",
        "\ud800 Chrome/1.0",
        "%s%n{}${jndi:x}",
        "(" * 2048,
        "Mozilla/5.0 (" * 400,
        "a" * 1_000_000,
        "Mozilla/5.0 (Linux; Android 10; \u202e\U0001f4f1) Chrome/1",
        "Mozilla/5.0 (Windows NT 10.0) Chrome/..... Safari/",
        "undefined",
    ],
    ids=lambda agent: ascii(agent[:30]),
)
def test_garbage_is_answered_with_texts(device, agent):
    facts = device.facts(agent)
    assert facts.keys() == KEYS
    assert all(isinstance(value, str) for value in facts.values())
    assert orjson.loads(device.encoded(agent)) == facts


def test_an_overlong_agent_is_cut():
    device = DeviceReader()
    padded = CHROME_WINDOWS + " " * 5000
    assert device.facts(padded)["browser_string"] == "Chrome"
    assert device.facts(padded + "Firefox/120.0")["browser_string"] == "Chrome"


def test_recent_agents_are_remembered_within_bounds():
    device = DeviceReader(cache_size=3)
    for _ in range(2):
        assert device.facts(PIXEL) is device.facts(PIXEL)
    assert (device.hits, device.misses) == (3, 1)
    assert device.encoded(PIXEL) is device.encoded(PIXEL)
    for number in range(3):
        device.facts(f"agent {number}")
    device.facts(PIXEL)
    assert device.misses == 5


def test_long_agents_are_not_remembered():
    """10,000 of them would take 80 MB."""
    reader = DeviceReader()
    for _ in range(2):
        reader.facts("Mozilla/5.0 " + "x" * 501)
    assert (reader.hits, reader.misses) == (0, 2)
    for _ in range(2):
        reader.facts("Mozilla/5.0 " + "x" * 500)
    assert (reader.hits, reader.misses) == (1, 3)


def test_the_rules_are_loaded_once_however_many_ask():
    device = DeviceReader()
    with ThreadPoolExecutor(4) as pool:
        resolvers = [future.result() for future in [pool.submit(device.load) for _ in range(4)]]
    assert all(resolver is resolvers[0] for resolver in resolvers)


def test_tv_device_type():
    facts = DeviceReader(tv_device_type="tv").facts(APPLE_TV)
    assert (facts["device_type"], facts["device"]) == ("tv", "AppleTV")
    assert facts["ps"].startswith("tv:false:")


def test_map_file_replaces_words(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(
        json.dumps(
            {
                "os": {"Mac OS X": "macOS", "Windows": "windows"},
                "browser": {"Chrome Mobile": "Chrome Mobile", "okhttp": "App", "IE": "IE"},
                "device": {"Pixel 8": "Google Pixel 8"},
                "device_type": {"iPad": "mobile", "desktop": "Desktop"},
            }
        )
    )
    device = DeviceReader(map_file=path)
    pixel = device.facts(PIXEL)
    assert (pixel["browser_string"], pixel["device"]) == ("Chrome Mobile", "Google Pixel 8")
    assert pixel["ps"] == "mobile:true:Android:14:Chrome Mobile:130.0.0:Google Pixel 8"
    assert device.facts("okhttp/4.12.0")["browser_string"] == "App"
    assert device.facts(IPAD)["device_type"] == "mobile"
    windows = device.facts(CHROME_WINDOWS)
    assert windows["ps"] == "Desktop:false:windows:10:Chrome:130.0.0:Other"


BROKEN_MAPS = {
    "not-json": ("{", "expected an object with some of the keys os, browser, device, device_type, got no valid JSON"),
    "empty-file": ("", "got no valid JSON"),
    "list": ("[1]", "expected an object with some of the keys os, browser, device, device_type, got [1]"),
    "unknown-section": ('{"brand":{}}', "brand: expected one of os, browser, device, device_type"),
    "section-not-object": ('{"os":"Linux"}', 'os: expected an object of texts, got "Linux"'),
    "number": ('{"os":{"Linux":1}}', "os.Linux: expected a text that is not empty, got 1"),
    "null": ('{"device":{"iPad":null}}', "device.iPad: expected a text that is not empty, got null"),
    "blank": ('{"browser":{"IE":" "}}', 'browser.IE: expected a text that is not empty, got " "'),
}


@pytest.mark.parametrize(("content", "problem"), BROKEN_MAPS.values(), ids=BROKEN_MAPS)
def test_a_broken_map_file_is_refused(tmp_path, content, problem):
    path = tmp_path / "words.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        DeviceReader(map_file=path)
    assert raised.value.problems[0].startswith(f"{path}: ")
    assert problem in raised.value.problems[0]


def test_all_problems_of_a_map_file_are_told_at_once(tmp_path):
    path = tmp_path / "words.json"
    path.write_text('{"os":{"Linux":1,"Windows":""},"brand":{}}')
    with pytest.raises(ConfigError) as raised:
        DeviceReader(map_file=path)
    assert len(raised.value.problems) == 3


def test_a_missing_map_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"got no readable file \(No such file or directory\)"):
        DeviceReader(map_file=tmp_path / "none.json")
