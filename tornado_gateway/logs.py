"""Logging of the whole process: one handler on stderr, set up once.

- Lines are text on a terminal and JSON elsewhere (LOG_FORMAT).
- One formatter writes all lines, tracebacks included, and masks the secrets in them.
- With ENVIRONMENTS_FILE, lines of one environment begin with its name: its tasks and threads have it in their context.
- A line about a failed request has the id of that request, which the caller passes on with the line
  (`extra={"request_id": ...}`), so this costs nothing for requests that succeed.
- A line about a condition that all workers see (`extra=once(...)`) is written by one of them.
- `announce` writes at every LOG_LEVEL: the start and the stop of the gateway.
"""

import asyncio
import contextvars
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

logger = logging.getLogger(__name__)
announcements = logging.getLogger(f"{__name__}.announcements")
announcements.setLevel(logging.INFO)  # whatever the level of the others is

OWN = __name__.partition(".")[0]  # begin of the names of the gateway's loggers
HUMAN = "%(asctime)s %(levelname)-5s %(name)s: %(message)s"
MASK = "****"
MAX_REASONS = 100  # per ThrottledLog, because reasons may contain text of clients
SHORTEST_SECRET = 4  # characters; a shorter one is also a part of ordinary words


def set_up(level: str, log_format: str = "auto", secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Set up the handler. `level` is ERROR, INFO or DEBUG, `log_format` auto, human or json.

    ERROR includes the warnings of the gateway, because they are about problems that operators have to solve. Those of
    libraries are for developers.
    """
    stream = stream or sys.stderr
    _secrets.clear()
    hide(*secrets)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if is_for_people(log_format, stream) else JsonFormatter())
    if level == "ERROR":
        handler.addFilter(_is_error_or_own)
    handler.addFilter(_is_for_this_process)
    logging.basicConfig(level="WARNING" if level == "ERROR" else level, handlers=[handler], force=True)
    # Tornado logs a warning for each request for a page that does not exist.
    logging.getLogger("tornado.general").setLevel(logging.DEBUG if level == "DEBUG" else logging.ERROR)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def is_for_people(log_format: str, stream: TextIO | None = None) -> bool:
    """Return whether lines are text, not JSON."""
    return log_format == "human" or (log_format == "auto" and (stream or sys.stderr).isatty())


def _is_error_or_own(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.startswith(OWN)


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Log an uncaught error, because the interpreter would print it without masking the secrets."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logger.critical("uncaught error, the process ended", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        logger.critical("uncaught error, a thread ended", exc_info=(args.exc_type, args.exc_value, args.exc_traceback))


_begin: contextvars.ContextVar[str] = contextvars.ContextVar("begin", default="")


def begin_lines_with(name: str) -> None:
    """Begin the lines of this context, and of those that are copied from it, with the name of an environment."""
    _begin.set(f"{name}: ")


# --- Lines of the whole instance ---

Claim = Callable[[str, str, float], str | None]
_claims: list[Claim] = []  # none in a process that has no workers beside it
CLAIM_SECONDS = 90.0  # longer than the interval of a throttled line, so that the same worker writes the next one


def share(claim: Claim) -> None:
    """Let workers agree on the one that writes a line. Call it before they are forked.

    `claim` is called with the condition, the name of an environment or "", and the time for which other workers are
    silent. It returns None if this process has to be silent, or a text that is added to the line.
    """
    _claims[:] = [claim]


def once(condition: str, seconds: float = CLAIM_SECONDS, *, is_of_instance: bool = False) -> dict[str, object]:
    """Return the `extra` of a line that one worker writes for all of those that see the same condition.

    A condition is one of each environment, or of the instance: then the line is written for all environments.
    """
    return {"once": (condition, seconds), "is_of_instance": is_of_instance}


def _is_for_this_process(record: logging.LogRecord) -> bool:
    condition: tuple[str, float] | None = getattr(record, "once", None)
    if condition is None or not _claims:
        return True
    more = _claims[0](condition[0], _begin_of(record), condition[1])
    if more:
        record.msg, record.args = f"{record.getMessage()} {more}", ()
    return more is not None


def announce(message: str, facts: Mapping[str, object], screen: str) -> None:
    """Write at every LOG_LEVEL: `screen` as it is for people, otherwise a line of JSON with the facts."""
    announcements.info("%s", message, extra={"facts": facts, "screen": screen})


# --- Formats ---


def _begin_of(record: logging.LogRecord) -> str:
    return "" if getattr(record, "is_of_instance", False) else _begin.get()


_secrets: dict[str, re.Pattern[str]] = {}  # global, as the logging of Python is


def hide(*secrets: str | None) -> None:
    """Mask these from now on, also as they are written in URLs and in JSON."""
    for secret in secrets:
        if secret and len(secret) >= SHORTEST_SECRET and secret not in _secrets:
            forms = {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
            longest_first = sorted(forms, key=len, reverse=True)
            _secrets[secret] = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)


def masked(text: str) -> str:
    for pattern in _secrets.values():
        text = pattern.sub(MASK, text)
    return text


class HumanFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(HUMAN)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  named by the standard library
        record.message = _begin_of(record) + record.message
        line = super().formatMessage(record)
        failed = failed_request_id(record)
        return line if failed is None else f"{line} [request {failed}]"

    def format(self, record: logging.LogRecord) -> str:
        screen: str | None = getattr(record, "screen", None)
        return masked(super().format(record)) if screen is None else screen


class JsonFormatter(logging.Formatter):
    """One JSON object per line: at (UTC), level, logger, message, pid, and facts, request_id, exception if present."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "at": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": masked(_begin_of(record) + record.getMessage()),
            "pid": record.process,
        }
        facts: Mapping[str, object] = getattr(record, "facts", {})
        line |= {name: masked(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}
        failed = failed_request_id(record)
        if failed is not None:
            line["request_id"] = masked(failed)
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(line)


def failed_request_id(record: logging.LogRecord) -> str | None:
    found: str | None = getattr(record, "request_id", None)
    return found


@dataclass(slots=True)
class _Interval:
    """The further occurrences of one reason since its last line, and the message of the newest one."""

    further: int
    message: str


class ThrottledLog:
    """Logs one line per reason and interval: the first occurrence at once, later ones together at its end.

    The line at the end has the message of the newest occurrence and their number. If there was none, the next
    occurrence is a first one again. For events that can happen thousands of times per second. Needs a running event
    loop. With a `condition`, one worker writes the lines of each reason for all workers (see `once`).
    """

    def __init__(self, log: logging.Logger, seconds: float = 60.0, condition: str | None = None) -> None:
        self._log = log
        self._seconds = seconds
        self._condition = condition
        self._intervals: dict[str, _Interval] = {}
        self._context = contextvars.copy_context()  # a request that causes a line has none of an environment

    def error(self, reason: str, message: str, *args: object, count: int = 1) -> None:
        """Log a message for `count` occurrences, unless one was logged for the same reason within the interval."""
        self._add(logging.ERROR, reason, message, args, count)

    def warning(self, reason: str, message: str, *args: object, count: int = 1) -> None:
        self._add(logging.WARNING, reason, message, args, count)

    def _add(self, level: int, reason: str, message: str, args: tuple[object, ...], count: int) -> None:
        interval = self._intervals.get(reason)
        if interval is not None:
            interval.further += count
            interval.message = message % args  # not the arguments: an exception would keep its frames alive
        elif len(self._intervals) < MAX_REASONS:
            self._intervals[reason] = _Interval(count - 1, message % args)
            self._write(level, reason, message, *args)
            self._plan_end(level, reason)

    def _write(self, level: int, reason: str, message: str, *args: object) -> None:
        extra = None if self._condition is None else once(f"{self._condition} {reason}")
        self._context.run(partial(self._log.log, level, message, *args, extra=extra))

    def _plan_end(self, level: int, reason: str) -> None:
        asyncio.get_running_loop().call_later(self._seconds, self._end_interval, level, reason)

    def _end_interval(self, level: int, reason: str) -> None:
        interval = self._intervals[reason]
        if not interval.further:
            del self._intervals[reason]
            return
        self._write(level, reason, "%s (%d more within %g s)", interval.message, interval.further, self._seconds)
        interval.further = 0
        self._plan_end(level, reason)
