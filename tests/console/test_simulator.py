"""POST /admin/simulate: its result is that of the command, with progress, and it ends when the client goes away."""

import http.client
import time
from contextlib import closing, contextmanager

import orjson
import pytest
from commands import run
from exchanges import exchange
from process import SAMPLE_SETTINGS, Gateway, sample_document

from tornado_gateway.console.insight.simulator import plan_of
from tornado_gateway.core import compile_settings
from tornado_gateway.errors import RequestError

PATH = "/admin/simulate"
LONG = {"visitors": 100_000, "traffic": {"102": 50}}  # takes half a minute at least
ENDS_WITHIN_SECONDS = 15.0  # because its client has left
CHANGED = {"featureKey": "new-checkout", "customVariables": {"plan": "gold"}, "weights": {"102": [80, 20]}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with Gateway(tmp_path_factory.mktemp("simulator") / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        yield gateway


def simulate(gateway, body):
    return exchange(gateway, "POST", PATH, body, **gateway.admin_headers)


def lines(data):
    return [orjson.loads(line) for line in data.splitlines()]


def test_the_command_gets_the_same_from_a_gateway_as_from_the_settings(gateway):
    options = ["--feature", "new-checkout", "--attribute", "plan=gold", "--weights", "102=80/20", "--json"]
    source = ("--url", f"http://127.0.0.1:{gateway.port}")
    remote = run("simulate", *source, *options, ADMIN_TOKEN=gateway.admin_token)
    assert remote.returncode == 0, remote.stderr
    assert remote.stdout == run("simulate", "--settings", str(SAMPLE_SETTINGS), *options).stdout
    received = exchange(gateway, "GET", "/status")[2]["events"]["received"]
    assert received == 0
    rejected = run("simulate", *source, *options)
    assert rejected.returncode == 1
    assert "returned 401: the admin token is required" in rejected.stderr


def test_ids_are_those_of_the_request(gateway):
    status, headers, data = simulate(gateway, CHANGED | {"ids": ["user-1", "user-2", "user-1", " user-2 "]})
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    result = lines(data)[-1]["result"]
    assert result["visitors"] == 2
    (feature,) = result["features"]
    assert feature["decided"] == {"experiment": 2}


def test_recent_visitors_are_those_of_decisions(gateway):
    url = ("--url", f"http://127.0.0.1:{gateway.port}")
    status, _, body = simulate(gateway, {"recent": True})
    assert (status, body["error"]) == (409, "no decision was requested in the last hour: use visitors or ids")
    users = ["recent-1", "recent-2", "recent-1"]
    for user in users:
        assert exchange(gateway, "POST", "/server-side/getFlag", {"featureKey": "dark-mode", "userId": user})[0] == 200
    result = run("simulate", *url, "--recent", "--json", ADMIN_TOKEN=gateway.admin_token)
    assert orjson.loads(result.stdout)["visitors"] == 2, result.stderr
    assert "--recent: expected --url" in run("simulate", "--settings", str(SAMPLE_SETTINGS), "--recent").stderr


@contextmanager
def started(gateway, body):
    """The response to a simulation whose client leaves at the end of the block."""
    with closing(http.client.HTTPConnection("127.0.0.1", gateway.port)) as connection:
        headers = {"Content-Type": "application/json"} | gateway.admin_headers
        connection.request("POST", PATH, orjson.dumps(body), headers)
        with connection.getresponse() as response:
            yield response


def test_requests_are_served_during_a_simulation_and_its_client_can_leave(gateway):
    with started(gateway, LONG) as response:
        check_running(gateway, response)
    deadline = time.monotonic() + ENDS_WITHIN_SECONDS
    while (status := simulate(gateway, CHANGED | {"visitors": 1})[0]) == 429:
        assert time.monotonic() < deadline
    assert status == 200
    assert '"ERROR"' not in gateway.log()


def check_running(gateway, response):
    progress = orjson.loads(response.readline())["progress"]
    assert 0 < progress["done"] < progress["of"] == LONG["visitors"]
    status, headers, body = simulate(gateway, LONG)
    assert (status, headers["retry-after"]) == (429, "5")
    assert "another simulation is running" in body["error"]
    assert exchange(gateway, "POST", "/server-side/getFlag", {"featureKey": "dark-mode", "userId": "u"})[0] == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "visitors: expected a number from 1 to 100000"),
        ({"visitors": 100_001}, "visitors: expected a number from 1 to 100000"),
        ({"visitors": True}, "visitors: expected a number from 1 to 100000"),
        ({"ids": []}, "ids: expected a list of texts"),
        ({"ids": ["a", 5]}, "ids: expected a list of texts"),
        ({"ids": ["x" * 2000]}, "ids must not be longer than 1024 bytes"),
        ({"visitors": 9, "featureKey": "new-chekout"}, "unknown feature new-chekout. Did you mean new-checkout?"),
        ({"visitors": 9, "ipAddress": "999.1.1.1"}, "ipAddress: expected an IPv4 or IPv6 address, got 999.1.1.1"),
        ({"visitors": 9, "traffic": {"102": "50"}}, "traffic.102: expected a percentage"),
        ({"visitors": 9, "traffic": {"102": 101}}, "expected 0 to 100 percent, got 101"),
        ({"visitors": 9, "weights": {"102": [50]}}, "expected 2 of them, for Two steps/One step"),
        ({"visitors": 9, "weights": {"102": 50}}, "weights.102: expected a list of percentages"),
        ({"visitors": 9, "weights": []}, "weights: expected an object"),
        ({"visitors": 9, "customVariable": {}}, "unknown field customVariable. Did you mean customVariables?"),
        ({"visitors": 9, "userId": "u"}, "unknown field userId"),
        ({"visitors": 9, "recent": True}, "recent: expected true, without ids and visitors"),
        ({"recent": "yes"}, "recent: expected true, without ids and visitors"),
    ],
)
def test_an_invalid_request_is_named(gateway, body, message):
    status, _, response = simulate(gateway, body)
    assert status == 400
    assert message in response["error"]


def test_the_number_of_decisions_is_bounded():
    document = sample_document()
    copies = [{**feature, "key": f"{feature['key']}-2", "id": feature["id"] + 100} for feature in document["features"]]
    settings = compile_settings({**document, "features": document["features"] + copies})
    assert plan_of(settings, {"visitors": 100_000}).visitors == 100_000
    with pytest.raises(RequestError, match="these are 4400000 decisions, at most 4000000 are permitted"):
        plan_of(settings, {"visitors": 100_000, "traffic": {"101": 50}})


def test_it_needs_the_token(gateway):
    assert exchange(gateway, "POST", PATH, CHANGED)[0] == 401
    assert exchange(gateway, "POST", PATH, CHANGED, Origin="http://other.example", **gateway.admin_headers)[0] == 403
