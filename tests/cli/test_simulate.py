"""`simulate`, as a real process: its distribution is that of getFlag."""

import http.client
from argparse import ArgumentTypeError
from collections import Counter

import orjson
import pytest
from commands import run
from process import SAMPLE_SETTINGS, Gateway, sample_document

from tornado_gateway.cli.insight.parsers import ip_address
from tornado_gateway.console.insight.simulator import plan_of
from tornado_gateway.core import compile_settings
from tornado_gateway.errors import RequestError
from tornado_gateway.insight.cases import CASE_FIELDS

FEATURES = ("new-checkout", "search-ranking", "promo-price", "dark-mode", "recommendations")
IDS = [f"shopper {number}" for number in range(300)]


def simulate(*arguments, settings=SAMPLE_SETTINGS):
    return run("simulate", "--settings", str(settings), *map(str, arguments))


def simulated(*arguments, **options):
    result = simulate(*arguments, "--json", **options)
    assert result.returncode == 0, result.stderr
    return {feature["feature"]: feature for feature in orjson.loads(result.stdout)["features"]}


def visitors_by_variation(part):
    counts = {
        (row["campaign"], row["variation"]["name"]): row["visitors"] for row in part["variations"] if row["visitors"]
    }
    return Counter(counts)


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    file = tmp_path_factory.mktemp("ids") / "ids.txt"
    file.write_text("\n".join([*IDS, "", IDS[0], ""]))
    return file


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with Gateway(tmp_path_factory.mktemp("simulate") / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        yield gateway


def test_the_distribution_is_that_of_getflag_for_the_same_ids(gateway, ids):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port)
    found = simulated("--ids", ids, "--attribute", "plan=silver")
    for key in FEATURES:
        seen = Counter()
        for user_id in IDS:
            body = {"featureKey": key, "userId": user_id, "customVariables": {"plan": "silver"}, "details": True}
            connection.request("POST", "/server-side/getFlag", orjson.dumps(body))
            flag = orjson.loads(connection.getresponse().read())
            if flag["isEnabled"]:
                seen[flag["details"]["campaignId"], flag["details"]["variation"]] += 1
        assert visitors_by_variation(found[key]) == seen, key
        assert found[key]["enabled"] == seen.total()
        assert sum(found[key]["decided"].values()) == len(IDS)
    connection.close()


def test_what_if_distributes_as_settings_with_these_weights_do(tmp_path, ids):
    document = sample_document()
    campaigns = {campaign["id"]: campaign for campaign in document["campaigns"]}
    campaigns[182]["percentTraffic"] = 90
    for variation, weight in zip(campaigns[182]["variations"], (10, 20, 70), strict=True):
        variation["weight"] = weight
    campaigns[161]["variations"][0]["weight"] = 80
    changed = tmp_path / "changed.json"
    changed.write_bytes(orjson.dumps(document))
    options = ["--traffic", "recommendations_testingRule1=90", "--weights", "182=10/20/70", "--traffic", "161=80"]
    now, then = simulated("--ids", ids, *options), simulated("--ids", ids, settings=changed)
    for key in FEATURES:
        what_if = now[key]["what_if"]
        assert visitors_by_variation(what_if) == visitors_by_variation(then[key]), key
        assert what_if["decided"] == then[key]["decided"], key
        assert what_if["moved"] == sum(move["visitors"] for move in what_if["moves"])
        assert (what_if["moved"] > 0) == (key in ("recommendations", "dark-mode"))
    moves = now["dark-mode"]["what_if"]["moves"]
    assert [(move["from"], move["to"]) for move in moves] == [("off", "Dark (rolloutRule1)")]
    gained = then["dark-mode"]["enabled"] - now["dark-mode"]["enabled"]
    assert moves[0]["visitors"] == gained
    assert len(now["dark-mode"]["what_if"]["moved_visitors"]) == min(gained, 20)


def test_the_text_names_shares_ranges_and_moves():
    arguments = ["--visitors", 1000, "--feature", "new-checkout", "--attribute", "plan=gold"]
    result = simulate(*arguments, "--weights", "testingRule1=100/0")
    assert result.returncode == 0, result.stderr
    for part in ("enabled for 1000 of 1000 visitors", "weight 50 %", "weight 100.0 %", "One step (testingRule1) -> "):
        assert part in result.stdout
    assert simulate(*arguments, "--weights", "testingRule1=100/0").stdout == result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--feature", "new-chekout"], 2, "unknown feature new-chekout. Did you mean new-checkout?"),
        (["--traffic", "nothing=5"], 2, "unknown rule nothing"),
        (["--traffic", "testingRule1=5"], 2, "several rules are named testingRule1: use the key of the campaign"),
        (["--traffic", "161=101"], 2, "expected 0 to 100 percent, got 101"),
        (["--weights", "161=50/50"], 2, "only experiments have weights"),
        (["--weights", "102=50/40"], 2, "expected a sum of 100 percent, got 90"),
        (["--weights", "102=50/30/20"], 2, "expected 2 of them, for Two steps/One step"),
        (["--weights", "102=nan/50"], 2, "expected RULE=PERCENT"),
        (["--visitors", "0"], 2, "expected a number of visitors, 1 to 1000000"),
        (["--attribute", "plan"], 2, "expected NAME=VALUE"),
        (["--ip", "999.1.1.1"], 2, "expected an IPv4 or IPv6 address, got '999.1.1.1'"),
        (["--ids", "/does/not/exist"], 1, "/does/not/exist: no such file or directory. Check the path"),
        (["--ids", "/dev/zero"], 2, "/dev/zero line 1: an ID has at most 1024 bytes"),
        (["--ids", "/dev/null"], 2, "expected an ID in each line, got none"),
    ],
)
def test_a_mistake_is_named(arguments, code, message):
    result = simulate(*arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


ADDRESSES = [
    *[("203.0.113.7", True), ("203.0.113.7:443", True), ("[2001:db8::1]:443", True), ("203.0.113.7, 10.0.0.1", True)],
    *[("fe80::1%eth0", True), ("999.1.1.1", False), ("localhost", False), ("fe80::1%", True), ("1.2.3", False)],
]


@pytest.mark.parametrize(("address", "is_valid"), ADDRESSES)
def test_commands_cases_and_the_console_accept_the_addresses_that_getflag_uses(address, is_valid):
    settings = compile_settings(sample_document())
    judged = [
        accepts(lambda: ip_address(address)),
        CASE_FIELDS["ip"].is_valid(address),
        accepts(lambda: plan_of(settings, {"visitors": 1, "ipAddress": address})),
    ]
    assert judged == [is_valid] * 3


def accepts(read):
    try:
        read()
    except (ArgumentTypeError, RequestError):
        return False
    return True
