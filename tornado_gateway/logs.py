"""Logging of the whole process: one handler on stderr, set up once.

- Lines are text on a terminal and JSON elsewhere (LOG_FORMAT).
- One formatter writes all lines, tracebacks included, and masks the secrets in them.
- With ENVIRONMENTS_FILE, lines of one environment begin with its name: its tasks and threads have it in their context.
- A line about a failed request has the id of that request, which the caller passes on with the line
  (`extra={"request_id": ...}`), so this costs nothing for requests that succeed.
"""

import asyncio
import contextvars
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

logger = logging.getLogger(__name__)

HUMAN = "%(asctime)s %(levelname)-5s %(name)s: %(message)s"
MASK = "****"
MAX_REASONS = 100  # per ThrottledLog, because reasons may contain text of clients
SHORTEST_SECRET = 4  # characters; a shorter one is also a part of ordinary words


def set_up(level: str, log_format: str = "auto", secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Set up the handler. `level` is ERROR, INFO or DEBUG, `log_format` auto, human or json."""
    stream = stream or sys.stderr
    _secrets.clear()
    hide(*secrets)
    is_human = log_format == "human" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if is_human else JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Tornado logs a warning for each request for a page that does not exist.
    logging.getLogger("tornado.general").setLevel(logging.DEBUG if level == "DEBUG" else logging.ERROR)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


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
        record.message = _begin.get() + record.message
        line = super().formatMessage(record)
        failed = failed_request_id(record)
        return line if failed is None else f"{line} [request {failed}]"

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: at (UTC), level, logger, message, pid; request_id and exception if there are any."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "at": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": masked(_begin.get() + record.getMessage()),
            "pid": record.process,
        }
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
    loop.
    """

    def __init__(self, log: logging.Logger, seconds: float = 60.0) -> None:
        self._log = log
        self._seconds = seconds
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
            self._write(level, message, *args)
            self._plan_end(level, reason)

    def _write(self, level: int, message: str, *args: object) -> None:
        self._context.run(self._log.log, level, message, *args)

    def _plan_end(self, level: int, reason: str) -> None:
        asyncio.get_running_loop().call_later(self._seconds, self._end_interval, level, reason)

    def _end_interval(self, level: int, reason: str) -> None:
        interval = self._intervals[reason]
        if not interval.further:
            del self._intervals[reason]
            return
        self._write(level, "%s (%d more within %g s)", interval.message, interval.further, self._seconds)
        interval.further = 0
        self._plan_end(level, reason)
