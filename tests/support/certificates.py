"""Certificates for tests, made by openssl."""

import subprocess
from pathlib import Path


def make_certificate(directory: Path, name: str, *, kind: str = "rsa", days: int = 30) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key. Negative `days` make one that has ended."""
    directory.mkdir(parents=True, exist_ok=True)
    cert, key, request, extensions = (directory / f"{name}.{end}" for end in ("pem", "key", "csr", "ext"))
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    new_key = {"rsa": ["rsa:2048"], "ec": ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]}[kind]
    _openssl("req", "-newkey", *new_key, "-noenc", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    given = ("-in", request, "-signkey", key, "-extfile", extensions, "-days", str(days))
    _openssl("x509", "-req", *given, "-out", cert)
    return cert, key


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
