"""The limit of open files (RLIMIT_NOFILE), raised by `serve` if possible, and checked by the doctor as well."""

import resource

NEEDED = 8192  # one for each connection of a busy worker, and about 60 of its own
FEW = 1024  # a load balancer can open more connections at once
RESERVED = 256  # of a worker: databases, connections to VWO and Redis, and the responses to rejected clients

OF_ENVIRONMENT = 16  # of each further environment: its databases and locks


def open_files_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def attainable_limit() -> int:
    """Return the limit of a gateway that is started by this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if is_sufficient(soft):
        return soft
    return NEEDED if is_sufficient(hard) else hard


def raise_limit() -> int:
    """Raise the limit of this process and its workers as far as it is needed and permitted. Return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = attainable_limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def is_sufficient(limit: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= NEEDED


def shortage(limit: int) -> str:
    """Return the description of a limit that is not sufficient."""
    return f"each process may open {limit} files, and {NEEDED} are needed: one for each connection"


def max_connections(limit: int, environments: int = 1) -> int:
    """Return the number of clients that a worker may have, 0 for any. Beyond the limit the kernel would reset them."""
    if limit == resource.RLIM_INFINITY:
        return 0
    return max(limit - RESERVED - OF_ENVIRONMENT * (environments - 1), limit // 4)
