"""python -m tornado_gateway.config FILE...: bring conf/gateway.env and docs/configuration.md up to date."""

import sys
from pathlib import Path

from tornado_gateway.config.render import render_env_file, with_tables

if len(sys.argv) < 2:
    sys.exit("usage: python -m tornado_gateway.config conf/gateway.env docs/configuration.md")
for path in map(Path, sys.argv[1:]):
    text = with_tables(path.read_text(encoding="utf-8")) if path.suffix == ".md" else render_env_file()
    path.write_text(text, encoding="utf-8")
