"""Commands of the gateway as an operator runs them."""

import os
import subprocess
import sys

from process import ROOT, SAMPLE_SETTINGS


def run_doctor(*arguments, before="", **options):
    variables = {"PATH": os.environ["PATH"], **{name: str(value) for name, value in options.items()}}
    command = ["bash", "-c", f'{before} exec "$@"', "-", sys.executable, "-m", "tornado_gateway", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60, cwd=ROOT)


def run(*arguments, **environment):
    variables = {"PATH": os.environ["PATH"], **environment}
    command = [sys.executable, "-m", "tornado_gateway", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60, cwd=ROOT)


def evaluate(*arguments):
    return run("evaluate", "--settings", str(SAMPLE_SETTINGS), *arguments)
