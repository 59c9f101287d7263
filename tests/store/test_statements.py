"""Statements of the embedded store are accepted by each supported Python.

Python 3.12.0 to 3.12.3 warn of a numbered placeholder (`?1`) with a sequence of values, as if it was a named one.
"""

import re

from process import ROOT


def test_placeholders_have_no_number():
    paths = sorted((ROOT / "tornado_gateway" / "store" / "sqlite").rglob("*.py"))
    assert len(paths) > 10
    assert {path.name: found for path in paths if (found := re.findall(r"\?[0-9]", path.read_text()))} == {}
