"""Random settings documents, contexts and records, from a seed, for comparing the core with the reference SDK.

They are small and use few names, so that things meet: segments match, campaigns share groups, records fit. What the
product decides otherwise on purpose stays out (boolean variables, lists, containers, versions that end in zeros,
rollouts in groups, holdouts that are new to a stored decision): `test_differences.py` has fixed cases for it.
"""

import random
from collections.abc import Callable
from typing import Any

Json = Any

USERS = [*(f"u{number}" for number in range(40)), "Zoë", "😀", "qa 1", "7", "D7E2EAA667909A2DB8A6371FF0975C2A5"]
NAMES = ["plan", "age", "v", "city", "_vwoUserId"]
VALUES: list[Json] = [
    *(
        "pro",
        "Pro",
        "free",
        "",
        "a*c",
        "20",
        "20.0",
        " 20 ",
        "020",
        "1e2",
        "-1",
        "5.1",
        "1.10.0",
        "1.10",
        "2.45",
        "nan",
    ),
    *("u1", "u2", "x(y)", "line\nbreak", "İstanbul", "007", "true", "٣"),
    *(None, 0, 1, 20, 20.0, 20.5, -3, 100, 2**53 + 1, 1e300),
]
PLAIN = ["pro", "Pro", "20", "20.0", "020", "", "0", "-1", "1e2", "a*c", "true", "inf", "100", "3", "gt(5)x", "gt( 5)"]
OPERANDS: dict[str, list[str]] = {
    "equal": PLAIN,
    "lower": ["lower(PRO)", "lower(pro)x", "lower(İSTANBUL)", "lower(20.0)", "lower()"],
    "contains": ["wildcard(*r*)", "wildcard(*)", "wildcard(*20.0*)", "wildcard(**o**)", "wildcard(*zz*)"],
    "starts": ["wildcard(p*)", "wildcard(2*)", "wildcard(a*c*)", "wildcard(zz*)"],
    "ends": ["wildcard(*ro)", "wildcard(*0)", "wildcard(*zz)"],
    "wildcard": ["wildcard(pro)", "wildcard(20.0)", "wildcard(a*c)", "wildcard()"],
    "regex": [
        "regex(^p)",
        "regex(^0\\d+)",
        "regex(\\d+$)",
        "regex(()",
        "regex(1.50)",
        "regex((?i)PRO)",
        "regex(\\i)",
        "regex()",
    ],
    "gt": ["gt(5)", "gt(1.9)", "gt(19.5)", "gt(2.5)", "gt(1.10.0)"],
    "gte": ["gte(20)", "gte(1.10)", "gte(0)", "gte(100.0)"],
    "lt": ["lt(5)", "lt(20.5)", "lt(2.10)", "lt(1.11)"],
    "lte": ["lte(20)", "lte(0)", "lte(5.1)", "lte(1.10.0)"],
}
# Versions and addresses without the trailing and leading zeros that the product compares otherwise.
VERSIONS = ["10", "10.5", "17.4.1", "1.2.3", "abc", "", None]
VERSION_OPERANDS = ["10", "10.5", '"17.4.1"', "wildcard(17*)", "wildcard(*4*)", "regex(^1)", "lower(ABC)", " abc "]
VERSION_COMPARISONS = [
    f"{name}({version})" for name in ("gt", "gte", "lt", "lte") for version in ("10.5", "17.4.1", "2")
]
ADDRESSES = ["1.2.3.4", "10.0.0.1", "2001:db8::1", "", None]
ADDRESS_OPERANDS = [
    "1.2.3.4",
    '"1.2.3.4"',
    " 10.0.0.1 ",
    "wildcard(10.0.*)",
    "regex(^2001:)",
    "gt(1.2.3.3)",
    "lte(9.9.9.9)",
]
AGENTS = ["Mozilla/5.0 (X11)", "curl/8", "", None]
AGENT_OPERANDS = ["curl/8", "wildcard(Mozilla*)", "regex(X11)", "lower(CURL/8)", "other"]
LOCATIONS = [
    {"country": "US", "region": "CA", "city": '"LA"'},
    {"country": "DE", "region": "BE", "city": None},
    {"country": "US"},
    {},
    None,
]
DEVICES = [
    {"os": "Windows", "os_version": "10", "browser_string": "Chrome", "device_type": "desktop", "device": "Other"},
    {"os": "iOS", "os_version": "17.4.1", "browser_version": "17.4.1", "device_type": "mobile", "device": "iPhone"},
    {"os": None, "device_type": "mobile phone", "browser_version": "1.2.3"},
    {"browser_version": "abc", "os_version": "", "device": ""},
    {},
    None,
]
PLACES = {"country": ["US", "DE", " US "], "region": ["CA", '"BE"'], "city": ["LA", None]}
DEVICE_TEXTS = {
    "os": ["windows", "iOS", "wildcard(win*)", "wildcard(dows)", ["linux", "Windows"]],
    "browser_string": ["chrome", "wildcard(*rom*)"],
    "device_type": ["mobile", "desktop", "wildcard(MOB*)", "wildcard(()"],
    "device": ["iphone", "other", 5],
}
WEB_CAMPAIGNS: list[Json] = [
    *({"12": "3"}, {"12": 4, "13": "3"}, {}, '{"12": "4"}', "{}", "", "no json", "[1]", {"12": None}, {"12": 4.0}),
    *(None, 5, {"": "1"}),
]
WEB_OPERANDS: list[Json] = ["12", "12_3", "12_!3", "!12", 12, 12.0, " 12_4 ", "x", "12_", True, None, "13_3"]
MALFORMED: list[Json] = [
    {},
    5,
    None,
    "text",
    {"and": 5},
    {"user": 7},
    {"or": [3]},
    {"custom_variable": {}},
    {"not": []},
]
WEIGHTS = [100, 100, 100, 50, 30, 33.3333, 1.1, 0, 0.001, 77.5, 20]
TRAFFIC = [100, 100, 100, 50, 77.5, 0, 10]
SALTS = ["", "", "s1", "s2", "sälz"]


class Generator:
    """A stream of settings, contexts and records."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def pick(self, options: list[Json]) -> Json:
        return self.random.choice(options)

    # --- segments ---

    def segment(self, depth: int = 0) -> Json:
        if self.chance(0.01):
            return self.pick(MALFORMED)
        if depth < 3 and self.chance(0.6):
            return self.pick(self.LOGIC)(self, depth)
        return self.pick(self.CONDITIONS)(self)

    def segment_or_none(self, share: float) -> Json:
        if not self.chance(share):
            return {}
        segment = self.segment()
        return segment if isinstance(segment, dict) else {"not": segment}

    def and_(self, depth: int) -> Json:
        if self.chance(0.3):
            return {"and": self.places()}
        return {"and": self.nodes(depth)}

    def or_(self, depth: int) -> Json:
        if self.chance(0.25):
            return {"or": self.devices()}
        if self.chance(0.15):
            return {"or": self.one_of_places()}
        nodes = self.nodes(depth)
        if self.chance(0.15):
            flag = self.pick(["on", "off", "on", "off", "ON"])
            nodes.insert(self.random.randint(0, len(nodes)), {"featureId": {str(self.random.randint(1, 5)): flag}})
        return {"or": nodes}

    def not_(self, depth: int) -> Json:
        return {"not": self.segment(depth + 1)}

    def nodes(self, depth: int) -> list[Json]:
        return [self.segment(depth + 1) for _ in range(self.pick([0, 1, 1, 2, 2, 3]))]

    def places(self) -> list[Json]:
        keys = self.random.sample(list(PLACES), self.random.randint(1, 3))
        nodes: list[Json] = [{key: self.pick(PLACES[key])} for key in keys]
        if self.chance(0.1):
            nodes.append({key: self.pick(values) for key, values in PLACES.items()})
        if self.chance(0.2):
            nodes.insert(self.random.randint(0, len(nodes)), self.custom_variable())
        return nodes

    def one_of_places(self) -> list[Json]:
        """As a list of countries arrives, mostly: alternatives of one place each."""
        key = self.pick(list(PLACES))
        nodes: list[Json] = [{"and": [{key: self.pick(PLACES[key])}]} for _ in range(self.random.randint(1, 4))]
        if self.chance(0.3):
            nodes.insert(self.random.randint(0, len(nodes)), self.segment(depth=3))
        return nodes

    def devices(self) -> list[Json]:
        keys = [self.pick(list(DEVICE_TEXTS)) for _ in range(self.random.randint(1, 3))]
        nodes: list[Json] = [{key: self.pick(DEVICE_TEXTS[key])} for key in keys]
        if self.chance(0.2):
            nodes.insert(self.random.randint(0, len(nodes)), self.custom_variable())
        return nodes

    def custom_variable(self) -> Json:
        operand: Json = self.pick(OPERANDS[self.pick(list(OPERANDS))])
        if self.chance(0.01):
            operand = self.pick([5, None, ["a"], True])
        return {"custom_variable": {self.pick(NAMES[:4] if self.chance(0.9) else NAMES): operand}}

    def user(self) -> Json:
        return {
            "user": self.pick(["u1", "u1, u2,u3 ,u4", "qa 1,Zoë", "", *USERS[:20], self.many_users(), *FORMULA_UUIDS])
        }

    def many_users(self) -> str:
        return ",".join(self.random.sample(USERS, 12))

    def user_agent(self) -> Json:
        return {"ua": self.pick(AGENT_OPERANDS)}

    def ip_address(self) -> Json:
        return {"ip_address": self.pick(ADDRESS_OPERANDS)}

    def version(self) -> Json:
        return {self.pick(["os_version", "browser_version"]): self.pick(VERSION_OPERANDS + VERSION_COMPARISONS)}

    def campaign_variation(self) -> Json:
        return {"campaignVariation": self.pick(WEB_OPERANDS)}

    def meaningless(self) -> Json:
        return self.pick([{"country": "US"}, {"os": "iOS"}, {"featureId": {"1": "on"}}, {"unheard_of": "x"}])

    LOGIC: list[Callable[..., Json]] = [and_, or_, or_, not_]
    CONDITIONS: list[Callable[..., Json]] = [
        *([custom_variable] * 6),
        *([user] * 2),
        user_agent,
        ip_address,
        version,
        campaign_variation,
        meaningless,
    ]

    # --- settings ---

    def settings(self) -> Json:
        self.campaigns: list[Json] = []
        self.grouped: set[int] = set()
        features = [self.feature(number) for number in range(1, self.random.randint(2, 5))]
        document = {
            "version": 1,
            "accountId": self.pick([12345, "12345", 7]),
            "sdkKey": "key",
            "features": features,
            "campaigns": self.campaigns,
            "isMAU": self.chance(0.5),
        }
        if self.chance(0.15):
            document["isWebConnectivityEnabled"] = self.pick([False, None, True])
        if self.chance(0.55):
            self.add_groups(document)
        if self.chance(0.4):
            document["holdouts"] = [self.holdout(900 + number) for number in range(self.random.randint(1, 3))]
        return document

    def feature(self, number: int) -> Json:
        kinds = ["FLAG_ROLLOUT"] * self.pick([0, 1, 1, 1, 2])
        kinds += [self.pick(["FLAG_TESTING", "FLAG_PERSONALIZE"]) for _ in range(self.pick([0, 1, 1, 2, 3]))]
        if self.chance(0.1):
            kinds.append("FLAG_OTHER")
        if self.chance(0.2):
            self.random.shuffle(kinds)
        rules = [self.rule(f"f{number}", kind, place) for place, kind in enumerate(kinds)]
        if self.chance(0.05):
            rules.append({"type": "FLAG_TESTING", "ruleKey": "lost", "campaignId": 999})
        feature = {
            "id": number if self.chance(0.95) else str(number),
            "key": f"f{number}" if self.chance(0.97) else "f1",
            "name": f"Feature {number}",
            "status": self.pick(["ON", "OFF"]),
            "type": "FEATURE_FLAG",
            "metrics": [{"id": 1, "type": "CUSTOM_GOAL", "identifier": f"event{number}"}],
            "rules": rules,
        }
        if self.chance(0.15):
            feature["impactCampaign"] = {"campaignId": self.pick([500, 0]), "type": "x"}
        if self.chance(0.1):
            feature["isDebuggerEnabled"] = True
        return feature

    def rule(self, feature_key: str, kind: str, place: int) -> Json:
        shared = [item for item in self.campaigns if item["type"] == kind]
        campaign = self.pick(shared) if shared and self.chance(0.1) else self.campaign(feature_key, kind, place)
        rule = {"type": kind, "ruleKey": f"rule{place}", "campaignId": campaign["id"]}
        if campaign["type"] != "FLAG_TESTING" or self.chance(0.1):
            if self.chance(0.8):
                rule["variationId"] = self.pick([item["id"] for item in campaign["variations"]] or [1])
            if self.chance(0.05):
                rule["variationId"] = 77
        return rule

    def campaign(self, feature_key: str, kind: str, place: int) -> Json:
        number = 10 + len(self.campaigns)
        is_test = kind == "FLAG_TESTING"
        count = self.random.randint(1, 4) if is_test else self.pick([1, 1, 2])
        campaign = {
            "id": number,
            "type": kind,
            "key": f"{feature_key}_rule{place}"
            if self.chance(0.85)
            else self.pick(["shared_key", "f2_rule1", "nodash"]),
            "name": f"Campaign {number}",
            "status": "RUNNING",
            "segments": self.segment_or_none(0.5) if is_test else {},
            "variations": [self.variation(number, index + 1, is_test) for index in range(count)],
        }
        if is_test and self.chance(0.98):
            campaign["percentTraffic"] = self.pick(TRAFFIC)
        if is_test and self.chance(0.3):
            campaign["isForcedVariationEnabled"] = True
        if self.chance(0.15):
            campaign["isUserListEnabled"] = True
        if is_test and self.chance(0.4):
            campaign["salt"] = self.pick(SALTS)
        self.campaigns.append(campaign)
        return campaign

    def variation(self, campaign: int, number: int, is_test: bool) -> Json:
        variation: Json = {"id": number, "name": f"Variation {number}", "weight": self.pick(WEIGHTS)}
        if is_test and self.chance(0.05):
            variation["id"] = self.pick([str(number), number + 0.5])
        if self.chance(0.9):
            variation["segments"] = self.segment_or_none(0.4)
        if self.chance(0.9):
            value = self.pick([f"{campaign}/{number}", number, 1.5, True, {"a": [1]}])
            variation["variables"] = [{"id": 1, "type": "string", "key": "k", "value": value}]
        if not is_test and self.chance(0.3):
            variation["salt"] = self.pick(SALTS)
        return variation

    def holdout(self, number: int) -> Json:
        return {
            "id": number,
            "name": f"Holdout {number}",
            "segments": self.segment_or_none(0.4),
            "featureIds": self.random.sample([1, 2, 3, 4], self.random.randint(0, 3)),
            "isGlobal": self.chance(0.3),
            "percentTraffic": self.pick([0, 5, 20, 50]),
            "metrics": [],
        }

    # --- groups ---

    def add_groups(self, document: Json) -> None:
        members = [name for feature in document["features"] for name in self.members(feature)]
        document["groups"], document["campaignGroups"] = {}, {}
        for number in range(1, self.random.randint(2, 3)):
            chosen = [name for name in dict.fromkeys(members) if self.chance(0.6)]
            members = [name for name in members if name not in chosen]
            document["groups"][str(number)] = self.group(chosen)
            document["campaignGroups"].update(dict.fromkeys(chosen, number))
        if members and self.chance(0.03):
            document["campaignGroups"][members[0]] = 99

    def members(self, feature: Json) -> list[str]:
        by_id = {item["id"]: item for item in self.campaigns}
        names = []
        for rule in feature["rules"]:
            campaign = by_id.get(rule["campaignId"])
            if not campaign or campaign["type"] in ("FLAG_ROLLOUT", "FLAG_OTHER"):
                continue
            if campaign["type"] == "FLAG_TESTING":
                names.append(str(campaign["id"]))
            elif sum(item["campaignId"] == campaign["id"] for item in feature["rules"]) == 1:
                ids = [item["id"] for item in campaign["variations"]]
                linked = rule.get("variationId") if rule.get("variationId") in ids else ids[0]
                names.append(f"{campaign['id']}_{linked}")
        return names

    def group(self, members: list[str]) -> Json:
        group: Json = {"name": "G", "campaigns": list(members)}
        self.random.shuffle(group["campaigns"])
        if self.chance(0.02):
            group["campaigns"].append(self.pick(["x", "10", "999"]))
        group["campaigns"] = list(dict.fromkeys(group["campaigns"]))
        group["et"] = self.pick([1, 1, 2, 2, 2])
        if self.chance(0.15):
            del group["et"]
        if self.chance(0.6):
            group["p"] = [name for name in members if self.chance(0.4)]
        if self.chance(0.7):
            group["wt"] = {name: self.pick([50, 20, 80, 0, 33.3333]) for name in members if self.chance(0.8)}
        if self.chance(0.02):
            del group["name"]
        return group

    # --- calls ---

    def context(self, document: Json) -> Json:
        context: Json = {"id": self.pick(USERS)}
        context["customVariables"] = self.variables()
        if self.chance(0.5):
            context["variationTargetingVariables"] = self.variables()
        if self.chance(0.2):
            context["bucketingSeed"] = self.pick(["team", "u1", " ", "u2"])
        for name, options, share in (
            ("userAgent", AGENTS, 0.7),
            ("ipAddress", ADDRESSES, 0.7),
            ("postSegmentationVariables", [["plan"], ["age", "_vwoUserId", "none"], []], 0.2),
            ("sessionId", [1_650_000_000, 0], 0.3),
            ("useIdForWeb", [True], 0.03),
        ):
            if self.chance(share):
                context[name] = self.pick(options)
        if self.chance(0.7):
            known = {"location": self.pick(LOCATIONS), "userAgent": self.pick(DEVICES)}
            context[self.pick(["_vwo", "_vwo", "_wingify"])] = known
        if self.chance(0.6):
            context["platformVariables"] = {"webTestingCampaigns": self.pick(WEB_CAMPAIGNS)}
        if self.chance(0.01):
            context[self.pick(["customVariables", "variationTargetingVariables"])] = None
        return context

    def variables(self) -> Json:
        return {name: self.pick(VALUES) for name in NAMES[:4] if self.chance(0.6)}

    def feature_key(self, document: Json) -> str:
        keys = [feature["key"] for feature in document["features"]]
        return str(self.pick(keys)) if self.chance(0.97) else "missing"

    def records(self, document: Json) -> Json:
        """Records of earlier decisions: plausible ones, outdated ones, odd ones."""
        records: Json = {}
        for feature in document["features"]:
            if self.chance(0.4):
                records[feature["key"]] = self.record(document, feature)
        for number in document.get("groups", ()):
            if self.chance(0.3):
                records[f"_vwo_meta_meg_{number}"] = self.group_record(document)
        return records

    def record(self, document: Json, feature: Json) -> Json:
        if self.chance(0.03):
            return self.pick([{}, {"status": "No data found"}, {"status": "Incorrect data"}, "text", None])
        holdouts = [
            item["id"]
            for item in document.get("holdouts", ())
            if item["isGlobal"] or feature["id"] in item["featureIds"]
        ]
        record: Json = {"featureKey": feature["key"], "notInHoldoutId": holdouts}
        if holdouts and self.chance(0.3):
            record["isInHoldoutId"] = [holdouts.pop()]
        if self.chance(0.02):
            record["holdoutGroupId"] = self.pick([[900], 900])
        by_id = {item["id"]: item for item in document["campaigns"]}
        for rule in feature["rules"]:
            campaign = by_id.get(rule["campaignId"])
            if campaign and self.chance(0.5):
                kind = "rollout" if campaign["type"] == "FLAG_ROLLOUT" else "experiment"
                key = campaign["key"] if campaign["type"] == "FLAG_TESTING" else f"{feature['key']}_{rule['ruleKey']}"
                record[f"{kind}Id"] = campaign["id"]
                record[f"{kind}Key"] = key if self.chance(0.95) else "gone"
                record[f"{kind}VariationId"] = self.pick([item["id"] for item in campaign["variations"]] + [88])
        if self.chance(0.05):
            record.pop("experimentKey", None)
        return record

    def group_record(self, document: Json) -> Json:
        tests = [item for item in document["campaigns"] if item["type"] in ("FLAG_TESTING", "FLAG_PERSONALIZE")]
        campaign = self.pick(tests) if tests else {"id": 1, "key": "k", "type": "", "variations": [{"id": 1}]}
        is_test = campaign["type"] == "FLAG_TESTING"
        return {
            "experimentId": campaign["id"],
            "experimentKey": campaign["key"],
            "experimentVariationId": -1 if is_test else campaign["variations"][0]["id"],
        }


# What users look like to campaigns with user lists: u1 and u2 of the accounts above.
FORMULA_UUIDS = ["E012891C2EB85923932F7D318E2D678D", "E012891C2EB85923932F7D318E2D678D,u5"]
