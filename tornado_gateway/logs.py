"""Logging of the whole process: one handler on stderr, set up once."""

import logging
import sys

FORMAT = "%(asctime)s %(levelname)-5s %(name)s: %(message)s"


def set_up(level: str) -> None:
    """`level` is ERROR, INFO or DEBUG (LOG_LEVEL)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
