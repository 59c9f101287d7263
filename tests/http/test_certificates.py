"""HTTPS in the gateway: real certificates, real handshakes, certificates renewed under open connections."""

import http.client
import shutil
import ssl
import subprocess
import sys
import time

import orjson
import pytest
from certificates import make_certificate
from process import SAMPLE_SETTINGS, Gateway

from tornado_gateway.http.certificates import CertificateError, Certificates, server_context
from tornado_gateway.process.certificate_expiry import expiry

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
GET_FLAG = orjson.dumps({"featureKey": "new-checkout", "userId": "user-1"})


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certificates")
    return {
        "first": make_certificate(directory, "first"),
        "second": make_certificate(directory, "second"),
        "curve": make_certificate(directory, "curve", kind="ec"),
        "ended": make_certificate(directory, "ended", days=-1),
    }


@pytest.fixture
def installed(pairs, tmp_path):
    """The files that the gateway is given, with the first pair in them."""
    paths = tmp_path / "tls.pem", tmp_path / "tls.key"
    install(pairs["first"], paths)
    return paths


def install(pair, paths):
    """As renewals do: a new file takes the place of the old one."""
    for source, target in zip(pair, paths, strict=True):
        fresh = target.with_suffix(".new")
        fresh.write_bytes(source.read_bytes())
        fresh.replace(target)


def handshake(server, client=None):
    """The certificate that a client gets to see, from a handshake in memory."""
    client = client or ssl._create_unverified_context()
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    near, far = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    for side in (near, far, near, far):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return near.getpeercert(binary_form=True)


def der(pair):
    return ssl.PEM_cert_to_DER_cert(pair[0].read_text())


class Client:
    """One HTTPS connection that trusts only this certificate."""

    def __init__(self, port, pair):
        context = ssl.create_default_context(cafile=pair[0])
        self._connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=60)
        self._connection.connect()
        self.protocol = self._connection.sock.version()
        self.alpn = self._connection.sock.selected_alpn_protocol()

    def get_flag(self):
        self._connection.request("POST", "/server-side/getFlag", GET_FLAG)
        response = self._connection.getresponse()
        return response.status, orjson.loads(response.read())

    def close(self):
        self._connection.close()


def test_a_context_needs_a_pair_that_fits(pairs):
    with pytest.raises(CertificateError, match=r"TLS_CERT_PATH.*TLS_KEY_PATH.*do not belong together"):
        server_context(pairs["first"][0], pairs["second"][1])


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"],
    ids=["empty", "nonsense", "damaged"],
)
def test_a_certificate_that_is_none_is_refused(content, pairs, tmp_path):
    path = tmp_path / "bad.pem"
    path.write_bytes(content)
    with pytest.raises(CertificateError):
        server_context(path, pairs["first"][1])


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(pairs, tmp_path):
    locked = tmp_path / "locked.key"
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", pairs["first"][1], "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(CertificateError, match="passphrase"):
        server_context(pairs["first"][0], locked)


def test_when_a_certificate_ends(pairs):
    assert 29 < (expiry(*pairs["first"]) - time.time()) / 86400 < 31
    assert 29 < (expiry(*pairs["curve"]) - time.time()) / 86400 < 31


def test_a_certificate_that_has_ended(pairs):
    with pytest.raises(CertificateError, match="expired"):
        expiry(*pairs["ended"])


def test_a_new_pair_takes_the_place_of_the_old_one(pairs, installed):
    certificates = Certificates(*installed)
    assert handshake(certificates.context) == der(pairs["first"])
    assert not certificates.check()
    install(pairs["second"], installed)
    assert certificates.check()
    assert handshake(certificates.context) == der(pairs["second"])
    assert not certificates.check()


def test_a_pair_of_another_kind_replaces_the_old_one_for_every_client(pairs, installed):
    """One context could hold both, and give the old one to clients that prefer RSA."""
    certificates = Certificates(*installed)
    install(pairs["curve"], installed)
    certificates.check()
    only_rsa = ssl._create_unverified_context()
    only_rsa.maximum_version = ssl.TLSVersion.TLSv1_2
    only_rsa.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError):
        handshake(certificates.context, only_rsa)
    assert handshake(certificates.context) == der(pairs["curve"])


def test_a_half_renewed_pair_keeps_the_old_one_until_the_other_half_is_there(pairs, installed, caplog):
    certificates = Certificates(*installed)
    cert, key = installed
    cert.write_bytes(pairs["second"][0].read_bytes())
    assert not certificates.check()
    assert not certificates.check()
    assert [record.levelname for record in caplog.records] == ["ERROR"], "told once"
    assert "the old one remains in use" in caplog.text
    assert "do not belong together" in certificates.error
    assert handshake(certificates.context) == der(pairs["first"])
    key.write_bytes(pairs["second"][1].read_bytes())
    assert certificates.check()
    assert certificates.error is None
    assert handshake(certificates.context) == der(pairs["second"])


def test_files_that_vanish_change_nothing(pairs, installed):
    certificates = Certificates(*installed)
    for path in installed:
        path.unlink()
    assert not certificates.check()
    assert handshake(certificates.context) == der(pairs["first"])


def https_gateway(tmp_path, installed):
    cert, key = installed
    return HttpsGateway(tmp_path / "data", SETTINGS_FILE=SAMPLE_SETTINGS, TLS_CERT_PATH=cert, TLS_KEY_PATH=key)


class HttpsGateway(Gateway):
    def request(self, method, path, body=None, headers=None):
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=context)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            data = response.read()
            return response.status, orjson.loads(data) if data else None
        finally:
            connection.close()


LOOK_SECONDS = 60.0  # the gateway looks at the files every five seconds


def test_flags_over_https_and_a_renewal_that_no_connection_notices(tmp_path, pairs, installed):
    with https_gateway(tmp_path, installed) as gateway:
        assert "https://" in gateway.log()
        old = Client(gateway.port, pairs["first"])
        assert (old.protocol, old.alpn) == ("TLSv1.3", None)
        status, answer = old.get_flag()
        assert (status, answer["isEnabled"]) == (200, True)

        # a broken pair first
        install((pairs["second"][0], pairs["first"][1]), installed)
        wait_for(lambda: "the old one remains in use" in gateway.log(), LOOK_SECONDS)
        Client(gateway.port, pairs["first"]).close()
        assert old.get_flag()[0] == 200

        install(pairs["curve"], installed)
        wait_for(lambda: serves(gateway.port, pairs["curve"]), LOOK_SECONDS)
        with pytest.raises(ssl.SSLCertVerificationError):
            Client(gateway.port, pairs["first"])
        assert old.get_flag() == (200, answer), "the old connection lives on"
        old.close()
        assert gateway.terminate() == 0


def serves(port, pair):
    try:
        Client(port, pair).close()
    except ssl.SSLError:
        return False
    return True


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_plain_http_on_the_https_port_gets_no_answer_and_does_no_harm(tmp_path, pairs, installed):
    with https_gateway(tmp_path, installed) as gateway:
        plain = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        plain.request("GET", "/health")
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.getresponse()
        plain.close()
        assert gateway.get("/health")[0] == 200


def test_a_gateway_does_not_start_with_a_pair_that_does_not_fit(tmp_path, pairs):
    gateway = https_gateway(tmp_path, (pairs["first"][0], pairs["second"][1]))
    with gateway.log_path.open("ab") as log:
        result = subprocess.run(
            [sys.executable, "-m", "tornado_gateway", "serve"], env=gateway._environment, stderr=log, timeout=60
        )
    assert result.returncode == 1
    assert "do not belong together" in gateway.log()
    assert "Traceback" not in gateway.log()
