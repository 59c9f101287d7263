"""`evaluate`, as a real process."""

import orjson
from commands import evaluate
from process import ROOT


def test_evaluate_prints_the_answer_of_getflag():
    result = evaluate("--feature", "new-checkout", "--user", "user-1", "--variables", '{"plan": "gold"}')
    assert result.returncode == 0
    assert orjson.loads(result.stdout)["variables"][0]["value"] == "Almost there"


def test_evaluate_explains_the_way_to_the_decision():
    result = evaluate("--feature", "new-checkout", "--user", "user-1", "--variables", '{"plan": "tin"}', "--explain")
    assert orjson.loads(result.stdout.splitlines()[0])["isEnabled"] is True
    explanation = result.stdout.partition("\n")[2]
    for part in ("rollout rule", "not passed", "plan is", "bucket"):
        assert part in explanation.lower(), explanation


def test_evaluate_locates_the_visitor():
    database = str(ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb")
    arguments = ["--feature", "free-shipping", "--user", "user-1", "--ip", "81.2.69.160", "--maxmind-db-path", database]
    assert "United Kingdom" in evaluate(*arguments, "--explain").stdout
    missing = evaluate(*arguments[:-1], "/does/not/exist")
    assert missing.returncode == 2
    assert "--maxmind-db-path: expected a GeoIP2 or GeoLite2 database, got /does/not/exist" in missing.stderr
