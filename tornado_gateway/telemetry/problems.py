"""Problems beside the last error: for /status, the console and the doctor, which use the same codes and remedies."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

MOST_PROBLEMS = 20  # in the record of a worker
LONGEST_MESSAGE = 500  # characters

REMEDIES = {
    "key-refused": "Compare ACCOUNT_ID and SDK_KEY with the dashboard: account settings, and the SDK key of the"
    " environment (production, staging). A key that was revoked there is rejected as well.",
    "upstream-unreachable": "Check from this machine: `curl -v UPSTREAM_URL`. Name resolution, the firewall's outgoing"
    " rules and the route to it are the usual reasons. The gateway continues with its last settings.",
    "upstream-tls": "The certificate received is not VWO's: a proxy that inspects TLS, a wrong UPSTREAM_URL,"
    " or a machine without CA certificates (Debian: package ca-certificates). For a private authority set"
    " UPSTREAM_CA_PATH.",
    "upstream-failing": "VWO has a problem or limits requests. Wait, and check its status page. Nothing is lost:"
    " settings stay, events wait.",
    "upstream-strange": "Something other than VWO responds at UPSTREAM_URL, such as a login page of a proxy."
    " Inspect the response with `curl -i UPSTREAM_URL`.",
    "redis-unreachable": "Check REDIS_HOST and REDIS_PORT, that Redis runs (`redis-cli ping` from this machine), its"
    " `bind` and the firewall. Events go to DATA_DIR meanwhile.",
    "redis-password": "Correct REDIS_PASSWORD (and REDIS_USERNAME with ACLs).",
    "redis-tls": "Both sides must agree: REDIS_ENABLE_TLS and Redis' tls-port, REDIS_TLS_CA_PATH for the authority,"
    " REDIS_TLS_CERT_PATH if Redis requires a client certificate.",
    "redis-failing": "Redis responds but cannot do its work: follow the message, or check its log (`INFO`, maxmemory,"
    " replica, ACL).",
    "geo-absent": "Copy the database to this path, or correct MAXMIND_DB_PATH. With a MaxMind account, run"
    " `tornado-gateway geo update`.",
    "geo-broken": "Replace the file: with a MaxMind account by `tornado-gateway geo update`, otherwise by a new"
    " download. A running gateway keeps the last good one.",
    "geo-old": "Update it: `tornado-gateway geo update`, or replace the file at MAXMIND_DB_PATH.",
    "certificate": "Install a certificate and its key that belong together and are valid; the gateway loads them"
    " by itself when the files change.",
    "certificate-ending": "Renew the certificate; the gateway loads it by itself when the files change.",
    "damaged-files": "Check the disk and its file system. Rows that were readable are in the new files. Delete the"
    " files `.damaged-<time>` when they are not needed any more.",
    "events-stuck": "Restart the gateway: waiting events stay stored and are sent after the start. If it happens again,"
    " report it with the log and /status.",
    "sample-ratio": "Find the reason before you use the results of the experiment: redirects, errors or caches that"
    " lose visitors of one variation, bots, whitelisted visitors of SDKs, an SDK that does not send its events. See"
    " Experiments in docs/operating.md.",
    "settings-pinned": "If the cause of the pin is corrected in VWO, compare with `tornado-gateway settings diff"
    " current latest` and run `tornado-gateway settings unpin`.",
    "slow-pattern": "Simplify the regex in the VWO dashboard: avoid repetitions inside repetitions, such as `(a+)+`.",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in words. `code` is a key of REMEDIES; `at` is in unix seconds."""

    code: str
    message: str
    file: str | None = None
    at: float | None = None
    rescued_rows: int | None = None  # of a damaged file
    damaged_rows: int | None = None


def published(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """Return the problems as the record of a worker has them."""
    shown = [asdict(problem) for problem in problems][:MOST_PROBLEMS]
    return [problem | {"message": problem["message"][:LONGEST_MESSAGE]} for problem in shown]


def merged(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the problems of all workers, each once, with its remedy."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for problem in records:
        found.setdefault((problem["code"], problem["message"]), problem | {"remedy": REMEDIES[problem["code"]]})
    return list(found.values())


def code_of_upstream(status: int, text: str) -> str:
    """Return the code of a failed request to VWO. `status` is 0 without a response, `text` the error."""
    if status == 429 or status >= 500:
        return "upstream-failing"
    if status in (404, 405) or 200 <= status < 400:
        return "upstream-strange"
    if status:
        return "key-refused"
    for code, signs in (
        ("upstream-tls", r"SSL|TLS|certificate"),
        ("upstream-strange", r"HTTP/0\.9|Unsupported HTTP|Weird|Invalid (status|header)|Received HTTP"),
    ):
        if re.search(signs, text, re.IGNORECASE):
            return code
    return "upstream-unreachable"


def code_of_redis(text: str) -> str:
    """Return the code of a failed request to Redis. `text` is the error."""
    for code, signs in (
        ("redis-password", r"password|NOAUTH|WRONGPASS|authentication"),
        ("redis-tls", r"SSL|TLS|certificate"),
        ("redis-unreachable", r"connect|refused|timed? ?out|no response|too slow|resol|unreachable|closed|not known"),
    ):
        if re.search(signs, text, re.IGNORECASE):
            return code
    return "redis-failing"
