"""Which build runs: with its hot modules compiled by mypyc (see setup.py), or in pure Python."""

from tornado_gateway import __version__
from tornado_gateway.core import bucketing

IS_COMPILED = not str(bucketing.__file__).endswith(".py")
BUILD = f"{__version__} ({'compiled' if IS_COMPILED else 'pure Python'})"
