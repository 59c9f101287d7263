"""Every command in README and docs is run here, or stands in a table that says why it is not."""

import os
import re
import subprocess

import pytest
from process import ROOT, SAMPLE_SETTINGS, Gateway

from tornado_gateway.cli.doctor.remedies import REMEDIES
from tornado_gateway.cli.main import build_parser

NAMES = ("getting-started", "operating", "environments", "simulator", "troubleshooting")
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in NAMES),
]

# Commands that begin like this are not run, and why. Each has to occur.
EXCEPTIONS = {
    "scripts/run": "serves until it is ended: run by test_readme.py",
    "ACCOUNT_ID=123456 SDK_KEY=...": "needs an account",
    "scripts/test": "is what runs this",
    "scripts/install-service": "run by test_install.py, below a root of its own",
    "sudo scripts/install-service": "changes the machine: run by test_install.py, below a root of its own",
    "sudo -u tornado-gateway": "needs the installed service",
    "sudo systemctl": "needs systemd as the machine's first process",
    "systemctl": "needs systemd as the machine's first process",
    "journalctl": "needs systemd as the machine's first process",
    "docker": "needs Docker; test_install.py checks the Dockerfile and the Compose file",
    "kubectl": "needs a cluster; test_install.py checks the manifests",
    "helm": "needs a cluster; test_chart.py renders the chart",
    "cp -n conf/gateway.env .env": "would put a file into the checkout",
    "tornado-gateway geo update": "needs an account at MaxMind",
    "tornado-gateway environments": "needs a file: run by tests/cli/test_environments.py",
    "tornado-gateway config --environments-file": "needs a file: run by tests/cli/test_environments.py",
    "tornado-gateway doctor --environments-file": "needs a file: run by tests/cli/test_environments.py",
    "tornado-gateway settings": "needs settings that have changed: run by tests/cli/test_settings.py",
    "systemd-analyze": "run by test_install.py",
}


def commands(path):
    """Of the shell blocks, with continued lines joined and comments removed."""
    for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#.*", "", line).strip()
            if command:
                yield re.sub(r"\s+", " ", command)


def exception_for(command):
    return next((start for start in EXCEPTIONS if command.startswith(start)), None)


ALL = [(path.name, command) for path in DOCUMENTS for command in commands(path)]
RUN = [(name, command) for name, command in ALL if exception_for(command) is None]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of somebody who works at a machine on which a gateway of the sample account runs."""
    directory = tmp_path_factory.mktemp("documented")
    with Gateway(directory / "data", SETTINGS_FILE=SAMPLE_SETTINGS) as gateway:
        yield {
            "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
            "HOST": "127.0.0.1",
            "PORT": str(gateway.port),
            "DATA_DIR": str(gateway.data_dir),
            "SETTINGS_FILE": str(SAMPLE_SETTINGS),
            "OUTPUT": str(directory),
        }


@pytest.mark.parametrize(("name", "command"), RUN, ids=[f"{name}: {command}" for name, command in RUN])
def test_a_documented_command_works(name, command, environment):
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{environment['PORT']}")
    command = command.replace("dead-letters.jsonl", f"{environment['OUTPUT']}/dead-letters.jsonl")
    command = command.replace(".venv/bin/", "")
    if command.startswith("curl "):
        command = command.replace("curl ", "curl --fail-with-body ", 1)
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_exception_is_needed():
    used = {exception_for(command) for _, command in ALL}
    assert used - {None} == set(EXCEPTIONS)


def test_most_commands_are_run():
    assert len(RUN) >= 15


def test_every_command_of_the_program_is_documented():
    text = "".join(path.read_text() for path in DOCUMENTS)
    for command in leaves(build_parser(), "tornado-gateway"):
        assert command in text, command


def leaves(parser, name):
    groups = [action for action in parser._actions if hasattr(action, "choices") and isinstance(action.choices, dict)]
    if not groups:
        yield name
    for group in groups:
        for word, child in group.choices.items():
            yield from leaves(child, f"{name} {word}")


@pytest.mark.parametrize("code", REMEDIES)
def test_every_finding_of_the_doctor_is_documented_with_its_remedy(code):
    text = (ROOT / "docs" / "operating.md").read_text()
    (row,) = [line for line in text.splitlines() if re.match(rf'\| (<a id="{code}"></a>)?`{code}` \|', line)]
    assert REMEDIES[code] in row
