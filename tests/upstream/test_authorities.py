"""Row A14: the certificate authorities of the operator apply to all requests to VWO: settings, events and lookups."""

import shutil
import ssl

import orjson
import pytest
from certificates import make_certificate
from commands import run_doctor
from process import Gateway, free_port, sample_document
from sdk.wire import ask
from vendor import Vendor

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")

NO_SYSTEM = {"SSL_CERT_FILE": "/dev/null", "SSL_CERT_DIR": "/nonexistent"}


def servers(vendor):
    port = vendor.tls_port
    return NO_SYSTEM | {"UPSTREAM_URL": f"https://localhost:{port}", "COLLECT_URL": f"https://127.0.0.1:{port}"}


EVENT = {"d": {"visId": "A", "event": {"name": "purchase", "props": {}}}}


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """The certificate of a vendor with a private authority, and the vendor's context."""
    cert, key = make_certificate(tmp_path_factory.mktemp("tls"), "vendor")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


@pytest.mark.parametrize("option", ["UPSTREAM_CA_PATH", "SSL_CERT_FILE"])
def test_a14_a_private_authority_applies_to_all_requests(tmp_path, tls, option):
    cert, context = tls
    with Vendor(sample_document(), tls=context) as vendor:
        vendor.lists["l"] = {"a"}
        options = servers(vendor) | {option: cert}
        with Gateway.of_vendor(tmp_path / "data", vendor, EVENTS_PER_REQUEST=1, **options) as gateway:
            vendor.wait_until(lambda: gateway.get("/ready")[0] == 200, describe=gateway.log)
            assert gateway.post("/events/t?en=purchase", EVENT)[0] == 200
            vendor.wait_for_events(1)
            assert ask(gateway.port, "GET", "/check-attribute?attribute=a&listId=l").body == b"true"
            assert ask(gateway.port, "POST", "/evaluate-event-dsl", b"{}").body == b"true"


@pytest.mark.parametrize("trusts", [True, False])
def test_a14_the_doctor_trusts_the_same_authority(tmp_path, tls, trusts):
    cert, context = tls
    sample = sample_document()
    with Vendor(sample, tls=context) as vendor:
        options = servers(vendor) | {"DATA_DIR": tmp_path / "data"}
        options |= {"ACCOUNT_ID": sample["accountId"], "SDK_KEY": sample["sdkKey"], "PORT": free_port()}
        if trusts:
            options["UPSTREAM_CA_PATH"] = cert
        findings = orjson.loads(run_doctor("--json", **options).stdout)["findings"]
        states = {found["check"]: found["state"] for found in findings}
        assert (states["upstream"], states["collector"]) == (("ok", "ok") if trusts else ("fail", "fail"))
