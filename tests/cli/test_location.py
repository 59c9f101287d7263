"""`geo` and `device`, as real processes."""

import orjson
from commands import run
from process import ROOT

IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
    " Version/17.0 Mobile/15E148 Safari/604.1"
)
GEOIP = ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb"


def test_an_address_is_looked_up_without_an_account():
    result = run("geo", "lookup", "81.2.69.160", "--maxmind-db-path", str(GEOIP))
    assert "United Kingdom" in result.stdout
    as_json = run("geo", "lookup", "81.2.69.160", "--json", MAXMIND_DB_PATH=str(GEOIP))
    assert orjson.loads(as_json.stdout)["city"] == "London"
    unknown = run("geo", "lookup", "127.0.0.1", MAXMIND_DB_PATH=str(GEOIP))
    assert (unknown.returncode, unknown.stdout) == (1, "No location found for 127.0.0.1.\n")


def test_an_address_cannot_be_looked_up_without_a_database(tmp_path):
    result = run("geo", "lookup", "81.2.69.160", MAXMIND_DB_PATH=str(tmp_path / "none.mmdb"))
    assert result.returncode == 1
    assert "none.mmdb" in result.stderr


def test_a_download_needs_an_account_at_maxmind():
    result = run("geo", "update")
    assert result.returncode == 2
    assert "MAXMIND_LICENSE_KEY" in result.stderr


def test_a_user_agent_is_looked_up():
    assert "iPhone" in run("device", "lookup", IPHONE).stdout
    assert orjson.loads(run("device", "lookup", IPHONE, "--json").stdout)["os"] == "iOS"
