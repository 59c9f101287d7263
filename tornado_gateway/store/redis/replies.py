"""The errors among the replies of Redis, as errors of the store."""

import re
from typing import Any

from redis import exceptions as errors

from tornado_gateway.errors import StoreError


class UnknownScriptError(StoreError):
    """Redis does not know the script by its hash (any more)."""


class LateError(StoreError):
    """The script reached Redis after its caller had given up."""


class ForbiddenError(StoreError):
    """The user lacks a permission (ACL)."""


_ERRORS_IN_SCRIPTS = {"OOM": errors.OutOfMemoryError, "READONLY": errors.ReadOnlyError}


def unwrapped(reply: Any) -> Any:
    """Return the error of a command in a script, which Redis before version 7 wraps in one of its own."""
    if isinstance(reply, errors.ResponseError):
        said = re.search(r"@user_script: ?\d+: -([A-Z]+) ", str(reply))
        if said and said[1] in _ERRORS_IN_SCRIPTS:
            return _ERRORS_IN_SCRIPTS[said[1]](str(reply))
    return reply


MASTER_IS_ELSEWHERE = (errors.ReadOnlyError, errors.ClusterDownError, errors.AskError)
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (errors.AuthenticationError, "the user name or password was rejected (REDIS_USERNAME, REDIS_PASSWORD)"),
    (errors.OutOfMemoryError, "the memory is full (maxmemory)"),
    (errors.ReadOnlyError, "it is a read-only replica"),
    (errors.BusyLoadingError, "it is still loading its data"),
    (errors.ClusterDownError, "the cluster is down"),
    (errors.MovedError, "the account's slot is on another node: it is a cluster (REDIS_CLUSTER)"),
    (errors.AskError, "the account's slot is being moved to another node"),
    (errors.TryAgainError, "the account's slot is being moved to another node"),
)


def store_error(where: str, error: Exception) -> StoreError:
    """Return any error as one line without secrets: only the reply is quoted, never a command."""
    if isinstance(error, StoreError):
        return error
    text = " ".join(re.sub(r"\bscript: \w+, on @user_script.*", "", str(error)).split())[:200]
    if isinstance(error, errors.NoScriptError):
        return UnknownScriptError(f"{where}: {text}")
    if text.startswith("LATE"):
        return LateError(f"{where}: too slow")
    if "cluster support disabled" in text:
        return StoreError(f"{where}: it is not a node of a cluster (REDIS_CLUSTER)")
    if isinstance(error, errors.NoPermissionError):
        return ForbiddenError(f"{where}: the user lacks a permission (ACL)")
    reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), text or type(error).__name__)
    return StoreError(f"{where}: {reason}")
