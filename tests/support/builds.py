"""The gateway in pure Python and compiled, for tests of both."""

import pytest
from process import COMPILED, ROOT

needs_compiled = pytest.mark.compiled
BUILDS = {"pure Python": ROOT, "compiled": COMPILED}
both_builds = pytest.mark.parametrize("build", ["pure Python", pytest.param("compiled", marks=needs_compiled)])
