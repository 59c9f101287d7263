"""Access to DATA_DIR: only the user of the gateway may read its files. `serve` calls `secure` before it forks."""

import logging
import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from tornado_gateway.errors import StoreError

logger = logging.getLogger(__name__)

_OTHERS = 0o077  # permissions of the group and of all other users
_OURS = ("admin-token", "reserve", "*.db", "*.db-wal", "*.db-shm", "*.lock")


def secure(directory: Path) -> None:
    """Create the directory or restrict it to its owner, with its files. New files of this process are private, too.

    Raise StoreError if one of the files is a symbolic link: following it would overwrite a file elsewhere.
    """
    os.umask(_OTHERS)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _reject_links(directory)
        _restrict(directory)
    except OSError as error:
        remedy = "Make DATA_DIR a directory that the gateway's user may write to."
        raise StoreError(f"{directory} cannot be used: {error.strerror}. {remedy}") from error


def _reject_links(directory: Path) -> None:
    for path in _files(directory):
        if path.is_symlink():
            raise StoreError(f"{path} is a symbolic link, which is not followed. Delete it, or move the file here.")


def _restrict(directory: Path) -> None:
    mode = stat.S_IMODE(directory.stat().st_mode)
    if not mode & _OTHERS:
        return
    files = list(_files(directory))
    if mode & stat.S_ISVTX or (not files and any(directory.iterdir())):
        logger.warning("%s has mode %04o and is used by other programs; give DATA_DIR its own", directory, mode)
        return
    try:
        directory.chmod(0o700)
        for path in files:
            path.chmod(0o600)
    except PermissionError as error:
        logger.warning("%s has mode %04o and could not be restricted: %s", directory, mode, error.strerror)
    else:
        logger.warning("%s had mode %04o, so other users had access to its files; changed to 0700", directory, mode)


def _files(directory: Path) -> Iterator[Path]:
    """Yield the files of the gateway in this directory."""
    return (path for path in directory.iterdir() if any(fnmatchcase(path.name, pattern) for pattern in _OURS))
