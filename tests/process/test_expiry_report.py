"""Row H6: an old or broken location database and an expired certificate are logged at the start and daily."""

import pytest
from certificates import make_certificate
from process import ROOT, SAMPLE_SETTINGS, Gateway

from tornado_gateway.process.certificate_expiry import report_expiry

GEOIP = ROOT / "tests" / "data" / "geoip" / "GeoIP2-City-Test.mmdb"


def errors(gateway):
    return [line for line in gateway.log().splitlines() if '"ERROR"' in line]


def test_h6_an_old_location_database_is_an_error(tmp_path):
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, MAXMIND_DB_PATH=GEOIP) as gateway:
        assert any("days old" in line and str(GEOIP) in line for line in errors(gateway))


def test_h6_a_broken_location_database_is_an_error(tmp_path):
    broken = tmp_path / "broken.mmdb"
    broken.write_bytes(b"not a database")
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, MAXMIND_DB_PATH=broken) as gateway:
        assert any("Location database" in line and str(broken) in line for line in errors(gateway))


def test_h6_without_a_database_there_is_no_error(tmp_path):
    with Gateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        assert errors(gateway) == []


@pytest.mark.parametrize(("days", "text"), [(-1, "expired"), (1, "expires in 23 h"), (3, "expires in 2 d 23 h")])
def test_h6_a_certificate_that_ends_is_an_error(tmp_path, caplog, days, text):
    cert, key = make_certificate(tmp_path, "gateway", days=days)
    report_expiry(cert, key)
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert text in record.message
    caplog.clear()
    report_expiry(*make_certificate(tmp_path, "valid", days=300))
    assert caplog.records == []
