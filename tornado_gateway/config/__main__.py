"""python -m tornado_gateway.config env|markdown: renders conf/gateway.env and docs/configuration.md."""

import sys

from tornado_gateway.config.options import render_env_file, render_markdown

RENDERERS = {"env": render_env_file, "markdown": render_markdown}

if len(sys.argv) != 2 or sys.argv[1] not in RENDERERS:
    sys.exit("usage: python -m tornado_gateway.config env|markdown")
sys.stdout.write(RENDERERS[sys.argv[1]]())
