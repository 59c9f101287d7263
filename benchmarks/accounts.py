"""Settings documents to measure with, and who asks: addresses and user agents."""

import ipaddress
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import maxminddb

DATA = Path(__file__).parent.parent / "tests" / "data"
LOCATION_DATABASE = DATA / "geoip" / "GeoIP2-City-Test.mmdb"
ACCOUNT_ID, SDK_KEY = 123456, "benchmark-key-0123456789abcdef00"
AGENTS = 500

Document = dict[str, Any]

BY_PLAN = {"or": [{"custom_variable": {"plan": "gold"}}, {"custom_variable": {"plan": "wildcard(*silver*)"}}]}
BY_PLACE_AND_DEVICE = {
    "and": [
        {"or": [{"and": [{"country": country}]} for country in ("United Kingdom", "United States", "Sweden")]},
        {"or": [{"device_type": "mobile"}, {"device_type": "desktop"}]},
    ]
}


def key_query(sdk_key: str = SDK_KEY) -> str:
    """Return the query in which thin SDKs name the account and their key."""
    return f"?accountId={ACCOUNT_ID}&sdkKey={sdk_key}"


def rollout(campaign: int, key: str) -> Document:
    """A campaign that switches a feature on for everybody."""
    variation = {"id": 1, "name": "Rollout", "weight": 100, "segments": {}, "variables": _variables("on")}
    return _campaign(campaign, "FLAG_ROLLOUT", f"{key}_rollout", {}, [variation])


def ab_test(campaign: int, key: str, segment: Document) -> Document:
    """A campaign with two variations for those in the segment."""
    names = {1: "Control", 2: "Variation"}
    variations = [
        {"id": id_, "name": name, "weight": 50, "segments": {}, "variables": _variables(name.lower())}
        for id_, name in names.items()
    ]
    return _campaign(campaign, "FLAG_TESTING", f"{key}_test_{campaign}", segment, variations)


def _campaign(id_: int, type_: str, key: str, segment: Document, variations: list[Document]) -> Document:
    return {
        "id": id_,
        "type": type_,
        "key": key,
        "name": key,
        "status": "RUNNING",
        "percentTraffic": 100,
        "isForcedVariationEnabled": False,
        "isAlwaysCheckSegment": False,
        "segments": segment,
        "variations": variations,
    }


def _variables(text: str) -> list[Document]:
    return [{"id": 1, "type": "string", "key": "title", "value": text}]


def plain(campaign: int, key: str) -> list[Document]:
    """Rollout only."""
    return [rollout(campaign, key)]


def tested(campaign: int, key: str) -> list[Document]:
    """Rollout to everybody, and an A/B rule for a segment by custom variable."""
    return [rollout(campaign, key), ab_test(campaign + 1, key, BY_PLAN)]


def enriched(campaign: int, key: str) -> list[Document]:
    """Rollout to everybody, and an A/B rule for a segment by location and device."""
    return [rollout(campaign, key), ab_test(campaign + 1, key, BY_PLACE_AND_DEVICE)]


def looking_at(rules: int) -> Callable[[int, str], list[Document]]:
    """So many A/B rules, of which nobody is in the segment of any: all of them are looked at."""

    def campaigns(campaign: int, key: str) -> list[Document]:
        nobody = [{"or": [{"custom_variable": {"plan": f"nobody-{number}"}}]} for number in range(rules)]
        return [
            rollout(campaign, key),
            *(ab_test(campaign + 1 + number, key, segment) for number, segment in enumerate(nobody)),
        ]

    return campaigns


def account(features: int, kind: Callable[[int, str], list[Document]] = tested) -> Document:
    """A settings document with so many features of a kind."""
    document: Document = {"version": 1, "accountId": ACCOUNT_ID, "sdkKey": SDK_KEY, "features": [], "campaigns": []}
    for number in range(features):
        key = f"feature-{number}"
        campaigns = kind(1000 + 50 * number, key)
        document["features"].append(_feature(number, key, campaigns))
        document["campaigns"] += campaigns
    return document


def _feature(number: int, key: str, campaigns: list[Document]) -> Document:
    rules: list[Document] = []
    for campaign in campaigns:
        rule = {"type": campaign["type"], "ruleKey": campaign["key"], "campaignId": campaign["id"]}
        rules.append(rule | ({"variationId": 1} if campaign["type"] == "FLAG_ROLLOUT" else {}))
    return {
        "id": number + 1,
        "key": key,
        "name": key,
        "status": "ON",
        "type": "FEATURE_FLAG",
        "impactCampaign": {},
        "metrics": [{"id": 1, "type": "CUSTOM_GOAL", "identifier": "purchase"}],
        "rules": rules,
    }


def unleash_features(features: int) -> Document:
    """What the Unleash API would say of the same plain features."""
    strategy = {
        "name": "flexibleRollout",
        "parameters": {"rollout": "100", "stickiness": "userId", "groupId": "benchmark"},
        "constraints": [],
    }
    variant = {"name": "on", "weight": 1000, "payload": {"type": "string", "value": "on"}, "stickiness": "userId"}
    return {
        "version": 1,
        "features": [
            {
                "name": f"feature-{number}",
                "type": "release",
                "enabled": True,
                "stale": False,
                "strategies": [strategy],
                "variants": [variant],
            }
            for number in range(features)
        ],
    }


def write_networks(path: Path) -> Path:
    """The IPv4 networks of the test database: first address and size."""
    with maxminddb.open_database(LOCATION_DATABASE) as database:
        networks = [network for network, _ in database if isinstance(network, ipaddress.IPv4Network)]
    path.write_text("".join(f"{int(network[0])} {network.num_addresses}\n" for network in networks))
    return path


def user_agents() -> list[str]:
    """500 different ones: the agents of the tests, with other version numbers."""
    known = [entry["user_agent"] for entry in json.loads((DATA / "user_agents.json").read_text())]
    known = [agent for agent in known if re.search(r"\d+(?!.*\d)", agent) and '"' not in agent and "\\" not in agent]
    agents = dict.fromkeys(_later(agent, step) for step in range(9) for agent in known)
    return list(agents)[:AGENTS]


def _later(agent: str, step: int) -> str:
    return re.sub(r"\d+(?!.*\d)", lambda number: str(int(number[0]) + step), agent)


def write_agents(path: Path, *, encoded: bool = False) -> Path:
    path.write_text("".join(f"{quote(agent, safe='') if encoded else agent}\n" for agent in user_agents()))
    return path
