"""Read the expiry of the gateway's certificate, for the doctor and for a daily log line."""

import contextlib
import logging
import ssl
import time
from functools import partial
from pathlib import Path

from tornado_gateway.http.certificates import CertificateError, server_context
from tornado_gateway.process.parts import Part
from tornado_gateway.tasks import Periodic

logger = logging.getLogger(__name__)

ENDING_DAYS = 14
REPORT_SECONDS = 86_400.0


def report_part(cert: Path, key: Path) -> Part:
    """Return the part that logs an expired or ending certificate at the start and once a day."""
    timer = Periodic(partial(report, cert, key), REPORT_SECONDS, jitter=0.1)

    def start() -> None:
        report(cert, key)
        timer.start()

    return Part("certificate report", start, timer.stop)


def report(cert: Path, key: Path) -> None:
    try:
        days = (expiry(cert, key) - time.time()) / 86_400
    except CertificateError as error:
        logger.error("clients reject the TLS certificate: %s", error)
    else:
        if days < ENDING_DAYS:
            logger.error("the TLS certificate %s expires in %.0f days", cert, days)


def expiry(cert: Path, key: Path) -> float:
    """Return the expiry in Unix seconds. Raise CertificateError if the certificate is unusable or has expired.

    It is read by a handshake in memory with a client that trusts only this certificate, because the standard library
    parses only certificates that a peer has presented.
    """
    try:
        end = (_handshake(cert, key).getpeercert() or {}).get("notAfter")
    except ssl.SSLCertVerificationError as error:
        raise CertificateError(f"{cert} (TLS_CERT_PATH): {error.verify_message}") from error
    except ssl.SSLError as error:
        raise CertificateError(f"{cert} (TLS_CERT_PATH): {error.reason}") from error
    return float(ssl.cert_time_to_seconds(str(end)))


def _handshake(cert: Path, key: Path) -> ssl.SSLObject:
    """Return the client's side of a complete handshake."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    server_side = server_context(cert, key)
    client_context.load_verify_locations(cert)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client
