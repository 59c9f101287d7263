"""The build that runs: its hot modules compiled (see docs/compiled-build.md), or pure Python."""

from importlib.machinery import PathFinder
from pathlib import Path

from tornado_gateway import __version__


def _is_compiled() -> bool:
    """Return whether the import system would load a compiled file for a hot module, without loading it."""
    spec = PathFinder.find_spec("bucketing", [str(Path(__file__).with_name("core"))])
    return spec is not None and not str(spec.origin).endswith(".py")


IS_COMPILED = _is_compiled()
BUILD = f"{__version__} ({'compiled' if IS_COMPILED else 'pure Python'})"
