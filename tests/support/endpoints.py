"""An account with features, lists and a collection prefix, and visitors and events for the tests of all endpoints."""

from typing import Any

import orjson
from process import ROOT, sample_document

JSON = "application/json; charset=utf-8"
SCRIPT = "application/javascript; charset=utf-8"
KEY = sample_document()["sdkKey"]
ACCOUNT = f"accountId=123456&sdkKey={KEY}"
GEOIP = ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb"
AGENTS = orjson.loads((ROOT / "tests" / "data" / "user_agents.json").read_bytes())
MAC = next(agent for agent in AGENTS if agent["id"] == "chrome-mac")
LONDON = {"country": "United Kingdom", "region": "England", "city": "London"}
TRUE, FALSE = b"true", b"false"
EVENT = {"d": {"msgId": "D-1", "visId": "D", "event": {"name": "purchase", "time": 1, "props": {"sku": "A-1"}}}}
MEMBERS = {"a@b.io", "a+b@b.io", "two words", "käse", "x&y"}


def document(**changes: Any) -> dict[str, Any]:
    more = orjson.loads((ROOT / "tests" / "data" / "sdk" / "features.json").read_bytes())
    sample = sample_document()
    both = {name: sample[name] + more[name] for name in ("features", "campaigns")}
    return sample | both | {"collectionPrefix": "eu01"} | changes


def new_events(gateway, vendor, count, act):
    """What arrives upstream because of an action, and not more."""
    settled = lambda: gateway.status()["events"]["waiting"] == 0  # noqa: E731
    vendor.wait_until(settled)
    before = len(vendor.events)
    act()
    vendor.wait_for_events(before + count)
    vendor.wait_until(settled)
    events = vendor.events[before:]
    assert len(events) == count
    return events


def in_any_order(events):
    """Requests upstream run concurrently, so batches may arrive in another order than they were accepted in."""
    return sorted(events, key=orjson.dumps)


MAC_AGENT = MAC["user_agent"]
FACTS: dict[str, str] = MAC["facts"]
ORIGIN = {"Origin": "https://shop.example"}


def lines(name: str, *values: str) -> dict[str, str]:
    """A header in several lines, as `request_bytes` writes it."""
    return {name: f"\r\n{name}: ".join(values)}


RAW_AGENT = b"Mozilla/5.0 (iPhone; CPU iPhone OS 17_2)\tK\xc3\xa4se"
