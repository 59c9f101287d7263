"""Logging set up for one test, and put back afterwards."""

import io
import logging
import sys
import threading

import pytest

from tornado_gateway import logs


@pytest.fixture
def restored():
    """Logging is the process's: put back what a test sets up."""
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)
    logging.getLogger("tornado.general").setLevel(logging.NOTSET)
    logs._secrets.clear()
    logs._claims.clear()


@pytest.fixture
def written(restored):
    """Set logging up and get what has been written so far."""

    def set_up(log_format="json", level="INFO", secrets=()):
        stream = io.StringIO()
        logs.set_up(level, log_format, secrets, stream)
        return stream.getvalue

    return set_up
