"""Says which build the tests in this process are about: scripts/test runs some of them for both."""

import os
from pathlib import Path

from process import COMPILED, IS_COMPILED

from tornado_gateway import version


def pytest_report_header() -> str:
    if Path(os.environ.get("PYTHONPATH", "/")) == COMPILED:
        assert version.IS_COMPILED, "a compiled build was asked for"
    return f"in this process: {version.BUILD}; processes of the gateway: {'compiled' if IS_COMPILED else 'pure Python'}"
