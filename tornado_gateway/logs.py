"""Logging of the whole process: one handler on stderr, set up once.

- Lines are for people on a terminal and JSON elsewhere (LOG_FORMAT).
- Whatever is written, tracebacks included, goes through one formatter that masks the secrets.
- A line about a failed request has the id of that request, which the caller passes on with the line
  (`extra={"request_id": ...}`), so a request that does not fail pays nothing for it.
"""

import asyncio
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

logger = logging.getLogger(__name__)

HUMAN = "%(asctime)s %(levelname)-5s %(name)s: %(message)s"
MASK = "****"
MAX_REASONS = 100  # that one ThrottledLog keeps apart: reasons may hold text from outside
SHORTEST_SECRET = 4  # characters; masking anything shorter would tear words apart


def set_up(level: str, log_format: str = "auto", secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """`level` is ERROR, INFO or DEBUG (LOG_LEVEL), `log_format` auto, human or json (LOG_FORMAT)."""
    stream = stream or sys.stderr
    _secrets.clear()
    hide(*secrets)
    is_human = log_format == "human" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if is_human else JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Tornado warns of each request for a page that does not exist.
    logging.getLogger("tornado.general").setLevel(logging.DEBUG if level == "DEBUG" else logging.ERROR)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """The interpreter would print it past the handler, with whatever secret it holds."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logger.critical("the process fails", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        logger.critical("a thread has failed", exc_info=(args.exc_type, args.exc_value, args.exc_traceback))


# --- secrets -----------------------------------------------------------------

_secrets: dict[str, re.Pattern[str]] = {}  # what is hidden, as all processes of Python share their logging


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


# --- lines -------------------------------------------------------------------


class HumanFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(HUMAN)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  named by the standard library
        line = super().formatMessage(record)
        failed = failed_request_id(record)
        return line if failed is None else f"{line} [request {failed}]"

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class JsonFormatter(logging.Formatter):
    """One object a line: at (UTC), level, logger, message, pid, and when there are any request_id and exception."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "at": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": masked(record.getMessage()),
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


class ThrottledLog:
    """Logs one line per reason and interval, and at its end another one with the number of further occurrences.

    For events that can happen thousands of times per second. Needs a running event loop.
    """

    def __init__(self, log: logging.Logger, seconds: float = 60.0) -> None:
        self._log = log
        self._seconds = seconds
        self._further: dict[str, int] = {}

    def error(self, reason: str, message: str, *args: object, count: int = 1) -> None:
        """Log a message for `count` occurrences, unless one was logged for the same reason within the interval."""
        self._add(logging.ERROR, reason, message, args, count)

    def warning(self, reason: str, message: str, *args: object, count: int = 1) -> None:
        self._add(logging.WARNING, reason, message, args, count)

    def _add(self, level: int, reason: str, message: str, args: tuple[object, ...], count: int) -> None:
        if reason in self._further:
            self._further[reason] += count
        elif len(self._further) < MAX_REASONS:
            self._further[reason] = count - 1
            self._log.log(level, message, *args)
            line = message % args
            asyncio.get_running_loop().call_later(self._seconds, self._end_interval, level, reason, line)

    def _end_interval(self, level: int, reason: str, line: str) -> None:
        count = self._further.pop(reason)
        if count:
            self._log.log(level, "%s (%d more within %g s)", line, count, self._seconds)
