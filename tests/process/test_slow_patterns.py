"""Rows D6 and D7: a visitor's text keeps no worker busy, whatever the conditions of the settings are."""

import orjson
import pytest
from core.documents import document, feature, rollout, rule
from process import Gateway

TEXT = "a" * 4096
REGEXES = {
    "slow": r"^(?=([a-zA-Z0-9]+[._-]?)+@example\.com$)a",  # no RE2
    "mail": r"^([a-zA-Z0-9]+[._-]?)+@example\.com$",
    "lines": r".*,.*,.*,.*;$",
}


@pytest.fixture(params=[1, 2], ids=["alone", "two workers"])
def gateway(request, tmp_path):
    campaigns = {
        key: rollout(number, segments={"custom_variable": {"v": f"regex({regex})"}})
        for number, (key, regex) in enumerate(REGEXES.items(), 1)
    }
    many = {"or": [{"custom_variable": {"v": operand}} for operand in ["wildcard(*x*)", "gt(1)", "1", "lower(X)"] * 15]}
    campaigns["many"] = rollout(9, segments=many)
    features = [feature(number, rule(campaign), key=key) for number, (key, campaign) in enumerate(campaigns.items(), 1)]
    settings = tmp_path / "settings.json"
    settings.write_bytes(orjson.dumps(document(features, list(campaigns.values()))))
    with Gateway(tmp_path / "data", SETTINGS_FILE=settings, WORKERS=request.param) as gateway:
        yield gateway


def is_enabled(gateway, key, value):
    fields = {"featureKey": key, "userId": "u", "customVariables": {"v": value}}
    status, answer = gateway.post("/server-side/getFlag", fields)
    assert status == 200
    return answer["isEnabled"]


def test_d7_a_hanging_pattern_ends_and_is_logged_once(gateway):
    """Row D7: the worker hung forever, unnoticed."""
    for _ in range(20):
        assert not is_enabled(gateway, "slow", TEXT)
    for key in ("mail", "lines"):
        assert not is_enabled(gateway, key, TEXT)
    assert is_enabled(gateway, "slow", "any.one@example.com")
    assert is_enabled(gateway, "mail", "some.one@example.com")
    assert is_enabled(gateway, "lines", "," * 4000 + ";")
    assert is_enabled(gateway, "mail", TEXT[:4000] + "@example.com")
    lines = [line for line in gateway.log().splitlines() if "exceeded 10 ms" in line]
    assert 1 <= len(lines) <= 2  # one of each worker that was asked
    assert "of feature slow" in lines[0]
    assert r"a-zA-Z0-9" in lines[0]
    assert "did not respond" not in gateway.log()


@pytest.mark.parametrize("value", [[[]] * 20_000, {"a": "x" * 60_000}, "x" * 60_000, "1" * 60_000, ["x"], {}])
def test_d6_large_values_match_nothing(gateway, value):
    assert not is_enabled(gateway, "many", value)
    assert is_enabled(gateway, "many", 1)
