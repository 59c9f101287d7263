"""The table of conditions that are problems, for /status, the metrics, the console and the doctor alike."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from tornado_gateway.errors import ACCOUNT_OPTIONS

MOST_PROBLEMS = 20  # in the record of a worker
LONGEST_MESSAGE = 500  # characters

OK, WARNING, CRITICAL = SEVERITIES = ("ok", "warning", "critical")


class Condition(NamedTuple):
    """A condition that is a problem, and what to do about it. docs/operating.md has an anchor with its code."""

    severity: str
    remedy: str


CONDITIONS = {
    "key-refused": Condition(
        CRITICAL,
        "Compare ACCOUNT_ID and SDK_KEY with the dashboard: account settings, and the SDK key of the"
        " environment (production, staging). A key that was revoked there is rejected as well.",
    ),
    "upstream-unreachable": Condition(
        WARNING,
        "Check from this machine: `curl -v UPSTREAM_URL`. Name resolution, the firewall's outgoing"
        " rules and the route to it are the usual reasons. A running gateway continues with its last settings.",
    ),
    "upstream-tls": Condition(
        WARNING,
        "The certificate received is not VWO's: a proxy that inspects TLS, a wrong UPSTREAM_URL,"
        " or a machine without CA certificates (Debian: package ca-certificates). For a private authority set"
        " UPSTREAM_CA_PATH.",
    ),
    "upstream-failing": Condition(
        WARNING,
        "VWO has a problem or limits requests. Wait, and check its status page. A running gateway keeps its"
        " settings and events meanwhile.",
    ),
    "upstream-strange": Condition(
        WARNING,
        "Something other than VWO responds at UPSTREAM_URL, such as a login page of a proxy."
        " Inspect the response with `curl -i UPSTREAM_URL`.",
    ),
    "redis-unreachable": Condition(
        WARNING,
        "Check REDIS_HOST and REDIS_PORT, that Redis runs (`redis-cli ping` from this machine), its"
        " `bind` and the firewall. A running gateway stores events in DATA_DIR meanwhile.",
    ),
    "redis-password": Condition(
        WARNING,
        "Correct REDIS_PASSWORD (and REDIS_USERNAME with ACLs).",
    ),
    "redis-tls": Condition(
        WARNING,
        "Both sides must agree: REDIS_ENABLE_TLS and Redis' tls-port, REDIS_TLS_CA_PATH for the authority,"
        " REDIS_TLS_CERT_PATH if Redis requires a client certificate.",
    ),
    "redis-failing": Condition(
        WARNING,
        "Redis responds but cannot do its work: follow the message, or check its log (`INFO`, maxmemory,"
        " replica, ACL).",
    ),
    "geo-absent": Condition(
        WARNING,
        "Copy the database to this path, or correct MAXMIND_DB_PATH. With a MaxMind account, run"
        " `tornado-gateway geo update`.",
    ),
    "geo-broken": Condition(
        WARNING,
        "Replace the file: with a MaxMind account by `tornado-gateway geo update`, otherwise by a new"
        " download. A running gateway keeps the last good one.",
    ),
    "geo-old": Condition(
        WARNING,
        "Update it: `tornado-gateway geo update`, or replace the file at MAXMIND_DB_PATH.",
    ),
    "certificate": Condition(
        CRITICAL,
        "Install a certificate and its key that belong together and are valid; the gateway loads them"
        " by itself when the files change.",
    ),
    "certificate-ending": Condition(
        WARNING,
        "Renew the certificate; the gateway loads it by itself when the files change.",
    ),
    "damaged-files": Condition(
        WARNING,
        "Check the disk and its file system. Rows that were readable are in the new files. Delete the"
        " files `.damaged-<time>` when they are not needed any more.",
    ),
    "events-stuck": Condition(
        CRITICAL,
        "Restart the gateway: waiting events stay stored and are sent after the start. If it happens again,"
        " report it with the log and /status.",
    ),
    "settings-pinned": Condition(
        WARNING,
        "If the cause of the pin is corrected in VWO, compare with `tornado-gateway settings diff current latest`"
        " and run `tornado-gateway settings unpin`.",
    ),
    "sample-ratio": Condition(
        WARNING,
        "Find the reason before you use the results of the experiment: redirects, errors or caches that lose visitors"
        " of one variation, bots, whitelisted visitors of SDKs, an SDK that does not send its events. See Experiments"
        " in docs/operating.md.",
    ),
    "slow-pattern": Condition(
        WARNING,
        "Simplify the regex in the VWO dashboard: avoid repetitions inside repetitions, such as `(a+)+`.",
    ),
    "no-settings": Condition(
        CRITICAL,
        "Follow the other problems, or run `tornado-gateway doctor`: the key is rejected, VWO"
        " cannot be reached or the document is unusable. The gateway can start from a SETTINGS_FILE.",
    ),
    "settings-stale": Condition(
        WARNING,
        "See last_poll in /status for the reason. Decisions continue with the last good settings; later changes"
        " are missing.",
    ),
    "settings-unusable": Condition(
        WARNING,
        "Fix the item named above in the VWO dashboard, or in SETTINGS_FILE. A running gateway keeps the last good"
        " settings.",
    ),
    "events-waiting": Condition(
        WARNING,
        "Events are not being delivered. See the upstream findings, and last_flush in /status for the reason.",
    ),
    "events-dead": Condition(
        WARNING,
        "Find the reason with `tornado-gateway events list`, then run `tornado-gateway events requeue` or"
        " `tornado-gateway events export`.",
    ),
    "events-lost": Condition(
        CRITICAL,
        "With Redis, set `maxmemory-policy noeviction` and `appendonly yes`; without it, check the disk of"
        " DATA_DIR. The log has the number and the time.",
    ),
    "events-rejected": Condition(
        WARNING,  # a client with invalid events causes it; a full queue and a store that fails have their own codes
        "The queue is full, events cannot be stored, or clients send invalid ones: the log has the reason. SDKs"
        " with a queue send events again that were rejected with 503.",
    ),
    "events-discarded": Condition(
        WARNING,
        "Set ACCOUNT_ID and SDK_KEY to deliver events. With an account, only dead letters are discarded: those that"
        " were deleted, and old ones. Requeue them earlier, or raise DEAD_LETTER_LIMIT.",
    ),
    "events-unknown": Condition(
        WARNING,
        "The store of the events cannot be read at the moment: follow the other problems. Nothing is lost meanwhile.",
    ),
    "queue-filling": Condition(
        CRITICAL,
        "Restore the delivery of events. If VWO is slower than events arrive, raise EVENTS_PER_REQUEST; to gain"
        " time, raise EVENT_QUEUE_LIMIT and restart.",
    ),
    "store-degraded": Condition(
        WARNING,
        "Check the disk of DATA_DIR (`df`) and its permissions, then the log. Events that cannot be stored are"
        " rejected with 503.",
    ),
    "connections-full": Condition(
        CRITICAL,
        "Raise the limit of open files: LimitNOFILE in the service unit, `ulimits` of a container, `ulimit -n` in"
        " a shell.",
    ),
    "request-errors": Condition(
        CRITICAL,
        "503 means a full queue, a failing store or missing settings: follow the other problems. 500 is a fault of"
        " the gateway: report it with the log.",
    ),
    "decision-errors": Condition(
        WARNING,
        "Explain a decision in the console or with `tornado-gateway evaluate --explain`: it names the invalid item.",
    ),
    "slow-decisions": Condition(
        WARNING,
        "Check the CPU usage, and the disk of DATA_DIR or the distance to Redis. STORE_SYNC=full needs a fast disk.",
    ),
    "loop-lag": Condition(
        WARNING,
        "Check the CPU usage of the machine and the limits of the container. More WORKERS help while there are"
        " idle cores.",
    ),
    "workers-restart": Condition(
        WARNING,
        "Read the log: each end has its exit code or signal. Signal 9 usually means that memory ran out (`dmesg`).",
    ),
}
REMEDIES = {code: condition.remedy for code, condition in CONDITIONS.items()}


def remedy_of(code: str, account_options: str) -> str:
    """Return what to do about a condition. `account_options` are the names of the options with account and key."""
    return REMEDIES[code].replace(ACCOUNT_OPTIONS, account_options)


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in words. `code` is a key of CONDITIONS; `at` is in unix seconds.

    `subject` distinguishes several problems of one code; None: the file or, without one, the message.
    """

    code: str
    message: str
    file: str | None = None
    at: float | None = None
    rescued_rows: int | None = None  # of a damaged file
    damaged_rows: int | None = None
    environment: str | None = None  # with ENVIRONMENTS_FILE
    subject: str | None = None


_NO_FILE = {"file": None, "at": None, "rescued_rows": None, "damaged_rows": None}


def published(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """Return the problems as the record of a worker has them."""
    shown = [asdict(problem) for problem in problems][:MOST_PROBLEMS]
    return [problem | {"message": problem["message"][:LONGEST_MESSAGE]} for problem in shown]


def as_shown(
    problem: Mapping[str, Any], environment: str | None, since: float, account_options: str = ACCOUNT_OPTIONS
) -> dict[str, Any]:
    """Return a problem with all that its table has about it. `since` is in Unix seconds."""
    code = problem["code"]
    shown = {**_NO_FILE, **problem, "environment": environment, "since": since}
    shown.pop("subject", None)
    remedy = remedy_of(code, account_options)
    return shown | {"severity": CONDITIONS[code].severity, "remedy": remedy, "runbook": runbook(code)}


def runbook(code: str) -> str:
    """Return the path of the place in docs/operating.md, which the gateway serves as a page."""
    return f"/docs/operating#{code}"


def verdict_of(problems: Iterable[Mapping[str, Any]]) -> str:
    """Return the highest severity: "ok" without a problem."""
    return max((problem["severity"] for problem in problems), key=SEVERITIES.index, default=OK)


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
