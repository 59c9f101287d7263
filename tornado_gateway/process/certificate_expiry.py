"""Read the expiry of the gateway's certificate, for the doctor and for a daily log line."""

import contextlib
import logging
import ssl
import time
from pathlib import Path

from tornado_gateway.http.certificates import CertificateError, server_context
from tornado_gateway.process.announcement.problem_lines import report
from tornado_gateway.quantities import duration
from tornado_gateway.tasks import Periodic
from tornado_gateway.telemetry.problems import Problem

logger = logging.getLogger(__name__)

ENDING_DAYS = 14
REPORT_SECONDS = 86_400.0
CHECK_SECONDS = 5.0  # as often as the files of a renewed certificate are read


class ExpiryReport:
    """Logs an expired or ending certificate at the start and once a day. `problem` is at most CHECK_SECONDS old."""

    def __init__(self, cert: Path, key: Path) -> None:
        self.problem: Problem | None = None
        self._cert = cert
        self._key = key
        self._log_timer = Periodic(self._log, REPORT_SECONDS, jitter=0.1)
        self._check_timer = Periodic(self._check, CHECK_SECONDS, jitter=0.1)

    def start(self) -> None:
        self._check()
        self._log()
        self._check_timer.start()
        self._log_timer.start()

    def stop(self) -> None:
        self._check_timer.stop()
        self._log_timer.stop()

    def _check(self) -> None:
        self.problem = find_problem(self._cert, self._key)

    def _log(self) -> None:
        report_expiry(self._cert, self._key)


def find_problem(cert: Path, key: Path) -> Problem | None:
    try:
        days = (expiry(cert, key) - time.time()) / 86_400
    except CertificateError as error:
        return Problem("certificate", f"Clients reject the TLS certificate: {error}", str(cert))
    if days >= ENDING_DAYS:
        return None
    return Problem("certificate-ending", f"The TLS certificate {cert} expires in {duration(days * 86_400)}", str(cert))


def report_expiry(cert: Path, key: Path) -> None:
    problem = find_problem(cert, key)
    if problem is not None:
        report(logger, problem, REPORT_SECONDS / 2)


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
