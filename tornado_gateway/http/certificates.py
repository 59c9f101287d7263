"""HTTPS in the gateway itself: the server's certificate, replaced while running when its files change.

Each version of the pair gets its own context, which is checked as a whole before the first handshake uses it. Loading
a new pair into the context in use would be wrong: a failure halfway leaves a context without a key, and an RSA
certificate stays beside the ECDSA one that should replace it.
"""

import logging
import ssl
from pathlib import Path

from tornado_gateway.errors import GatewayError
from tornado_gateway.logs import once
from tornado_gateway.tasks import FileWatch, Periodic

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0


class CertificateError(GatewayError):
    """TLS_CERT_PATH and TLS_KEY_PATH cannot be used."""


class Certificates:
    """The pair at these paths. `context` is for the server and always uses the newest valid pair."""

    def __init__(self, cert: Path, key: Path) -> None:
        self.error: str | None = None  # the reason why the newest files are not in use
        self._cert = cert
        self._key = key
        self._watch = FileWatch(cert, key)
        self._current = server_context(cert, key)
        self.context = server_context(cert, key)
        self.context.sni_callback = self._use_current
        self._timer: Periodic | None = None

    def start(self, check_seconds: float = CHECK_SECONDS) -> None:
        """Watch the files."""
        self._timer = Periodic(self._tick, check_seconds, jitter=0.2)
        self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

    def check(self) -> bool:
        """Read the files if they have changed. Return True if a new pair is in use. Open connections keep theirs.

        A renewal writes one file after the other. A pair that does not match is logged once, and checked again when a
        file changes the next time.
        """
        if not self._watch.has_changed():
            return False
        try:
            self._current = server_context(self._cert, self._key)
        except CertificateError as error:
            self.error = str(error)
            extra = once(f"new certificate {error}")
            logger.error("the new TLS certificate was rejected, the old one remains in use: %s", error, extra=extra)
            return False
        self.error = None
        logger.info("the TLS certificate was replaced: %s", self._cert)
        return True

    def _tick(self) -> None:
        self.check()

    def _use_current(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        # OpenSSL asks at each handshake, also when the client names no host.
        connection.context = self._current


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return a context that serves this pair. Raise CertificateError if it cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except ssl.SSLError as error:
        raise CertificateError(f"{cert} (TLS_CERT_PATH) with {key} (TLS_KEY_PATH): {_reason_of(error)}") from error
    except (OSError, ValueError) as error:
        raise CertificateError(f"{cert} (TLS_CERT_PATH) with {key} (TLS_KEY_PATH): {error}") from error
    return context


def _reason_of(error: ssl.SSLError) -> str:
    reason: object = getattr(error, "reason", None)  # typed as a text, but None for a file that is no certificate
    return "they do not belong together" if reason == "KEY_VALUES_MISMATCH" else str(reason or error)


def _no_passphrase() -> str:
    """Fail, because OpenSSL would otherwise ask on the terminal, and the gateway would wait forever."""
    raise ValueError("the key must not have a passphrase")
