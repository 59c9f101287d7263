"""The secret of operators: ADMIN_TOKEN or, if it is not set, a token that the first start creates in DATA_DIR.

`serve` calls `ensure` once, before it forks workers. The operators' commands only read the file.
"""

import contextlib
import errno
import logging
import os
import re
import secrets
import stat
from pathlib import Path
from urllib.parse import quote

from tornado_gateway.errors import GatewayError

logger = logging.getLogger(__name__)

TOKEN_BYTES = 32  # of randomness, written as 43 characters
MAX_FILE_BYTES = 1024
_TOKEN = re.compile(r"[\x21-\x7e]{16,}")
_OTHERS = 0o077  # permissions of the group and of all other users
_NEW_TOKEN = "Delete the file, so that the next start creates a new token, or set ADMIN_TOKEN."  # noqa: S105  a message


class AdminTokenError(GatewayError):
    """The token cannot be read or created. The message names the file and the remedy."""


def path_in(data_dir: Path) -> Path:
    return data_dir / "admin-token"


def sign_in_link(url: str, token: str) -> str:
    """Return a link to the console that signs in. Browsers do not send the part behind # to any server."""
    return f"{url}/console#token={quote(token, safe='')}"


def ensure(data_dir: Path) -> str:
    """Return the token in DATA_DIR, and create it if there is none. Gateways that start together get the same one."""
    path = path_in(data_dir)
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.lexists(path):
            _create(path)
    except OSError as error:
        remedy = "Make DATA_DIR a directory that the gateway's user may write to, or set ADMIN_TOKEN."
        raise AdminTokenError(f"The admin token cannot be created in {path}: {error.strerror}. {remedy}") from error
    with contextlib.suppress(FileNotFoundError):
        return _read(path, tighten=True)
    raise AdminTokenError(f"{path} was deleted while the gateway started. Start it again, or set ADMIN_TOKEN.")


def read(data_dir: Path) -> str:
    """Return the token in DATA_DIR. Raise FileNotFoundError if no gateway has created one."""
    return _read(path_in(data_dir))


def is_exposed(path: Path) -> bool:
    """Return whether other users may read or replace the token."""
    return bool(path.lstat().st_mode & _OTHERS)


def _create(path: Path) -> None:
    """Write the token beside its place and link it there: no reader finds it empty, and an existing one stays."""
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(draft, flags, 0o600), "w") as file:
        try:
            file.write(f"{secrets.token_urlsafe(TOKEN_BYTES)}\n")
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()


def _read(path: Path, *, tighten: bool = False) -> str:
    # A planted link is not followed, and a planted pipe does not block the start.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            if tighten:
                _tighten(file.fileno(), path)
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise AdminTokenError(_unreadable(path, error)) from error
    token = content.decode("latin-1").strip()
    if not token:
        raise AdminTokenError(f"{path} is empty. {_NEW_TOKEN}")
    if len(content) > MAX_FILE_BYTES or not _TOKEN.fullmatch(token):
        raise AdminTokenError(f"{path} does not contain a token of at least 16 printable characters. {_NEW_TOKEN}")
    return token


def _unreadable(path: Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return f"{path} is a symbolic link, which is not followed. {_NEW_TOKEN}"
    if isinstance(error, PermissionError):
        return f"{path} cannot be read: {error.strerror}. Use the gateway's user or root, or set ADMIN_TOKEN."
    return f"{path} cannot be read: {error.strerror}. {_NEW_TOKEN}"


def _tighten(descriptor: int, path: Path) -> None:
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if not mode & _OTHERS:
        return
    try:
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        logger.warning("%s had mode %04o and could not be restricted: %s; set ADMIN_TOKEN instead", path, mode, error)
    else:
        logger.warning("%s had mode %04o, so other users had access to the admin token; changed to 0600", path, mode)
