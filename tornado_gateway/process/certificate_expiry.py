"""Read the expiry of the gateway's certificate, for the doctor."""

import contextlib
import ssl
from pathlib import Path

from tornado_gateway.http.certificates import CertificateError, server_context


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
