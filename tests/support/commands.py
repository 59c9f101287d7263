"""Commands of the gateway as an operator runs them."""

import os
import subprocess
import sys
import threading

from forked import Forked
from process import ROOT, SAMPLE_SETTINGS

PATIENCE_SECONDS = 60


def run_doctor(*arguments, before="", **options):
    """Run the doctor, if `before` is given after these commands of a shell."""
    variables = {name: str(value) for name, value in options.items()}
    if not before:
        return run("doctor", *arguments, **variables)
    command = ["bash", "-c", f'{before} exec "$@"', "-", sys.executable, "-m", "tornado_gateway", "doctor", *arguments]
    variables["PATH"] = os.environ["PATH"]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=PATIENCE_SECONDS, cwd=ROOT)


def run(*arguments, **environment):
    """Run a command to its end."""
    variables = {"PATH": os.environ["PATH"], **environment}
    with Forked(ROOT, arguments, variables, ROOT) as command:
        deadline = threading.Timer(PATIENCE_SECONDS, command.kill)
        deadline.start()
        try:
            written = command.read()
        finally:
            deadline.cancel()
        return subprocess.CompletedProcess(arguments, command.wait(PATIENCE_SECONDS), *written)


def evaluate(*arguments):
    return run("evaluate", "--settings", str(SAMPLE_SETTINGS), *arguments)
