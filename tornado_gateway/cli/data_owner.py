"""Run as the owner of DATA_DIR when started as root."""

import os
import pwd
from collections.abc import Sequence
from pathlib import Path


def become_owner(directory: Path) -> None:
    """When running as root, switch to the owner of DATA_DIR.

    Otherwise a command would leave files there that the gateway cannot write to, and the doctor would report
    every directory as writable.
    """
    if os.geteuid() != 0 or not directory.is_dir():
        return
    owner = directory.stat()
    if owner.st_uid != 0:
        os.setgroups(_groups(owner.st_uid, owner.st_gid))
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _groups(user: int, group: int) -> Sequence[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(user).pw_name, group)
    except KeyError:  # a number without a name, as in containers
        return [group]
