"""What a release consists of: metadata of the package, bill of materials, the test of the deployments."""

import re
import subprocess
import sys
import tomllib

import orjson
import pytest
from process import ROOT

LOCKED = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "conf" / "requirements.lock").read_text(), re.MULTILINE))
STEP = re.compile(r'^ *(?:ok|expect|eventually \d+|quietly \d+|say) "(?:ok: )?([^"$]+)"', re.MULTILINE)
SCRIPTS = ("scripts/build-wheel", "scripts/test-deployments", "tests/deployments/service-steps")


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def bill_of_materials(seconds="1"):
    command = [sys.executable, ROOT / "scripts" / "sbom"]
    made = subprocess.run(command, env={"SOURCE_DATE_EPOCH": seconds}, capture_output=True, check=True)
    return orjson.loads(made.stdout)


def test_the_classifiers_are_the_pythons_that_the_locks_are_tested_for():
    """tests/process/test_install.py resolves the locks for these versions."""
    classifiers = project()["classifiers"]
    versions = [text.rpartition(" ")[2] for text in classifiers if re.search(r":: 3\.\d+$", text)]
    tested = (ROOT / "tests" / "process" / "test_install.py").read_text()
    assert versions == sorted(set(re.findall(r'"(3\.\d+)\.\d+"', tested)), key=lambda text: int(text.split(".")[1]))
    assert project()["requires-python"] == f">={versions[0]}"
    assert "Operating System :: POSIX :: Linux" in classifiers
    readme = (ROOT / "README.md").read_text()
    assert f"Linux and Python {versions[0]} or newer" in readme
    assert 'license="Apache-2.0"' in (ROOT / "setup.py").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_bill_of_materials_has_each_locked_package_with_its_hashes():
    components = {component["name"]: component for component in bill_of_materials()["components"]}
    assert {name: components[name]["version"] for name in LOCKED} == LOCKED
    for name in LOCKED:
        (reference,) = components[name]["externalReferences"]
        assert reference["hashes"], name
    assert components["tornado"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert set(components) - set(LOCKED) == {"uplot"}


def test_the_same_sources_have_the_same_bill_of_materials():
    first, second = bill_of_materials(), bill_of_materials()
    assert first == second
    assert first["metadata"]["timestamp"] == "1970-01-01T00:00:01Z"
    assert bill_of_materials("2")["serialNumber"] != first["serialNumber"]
    references = [component["bom-ref"] for component in first["components"]]
    assert first["dependencies"] == [{"ref": first["metadata"]["component"]["bom-ref"], "dependsOn": references}]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_valid_and_executable(name):
    assert (ROOT / name).stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", ROOT / name], capture_output=True).stderr == b""


def test_the_recorded_output_is_that_of_the_steps():
    """A step without a line in the output was added after the last run of scripts/test-deployments."""
    output = (ROOT / "tests" / "deployments" / "output.txt").read_text()
    assert {"all steps passed", "passed: image", "passed: service"} <= set(output.splitlines())
    assert "FAILED" not in output
    named = [name for script in SCRIPTS[1:] for name in STEP.findall((ROOT / script).read_text())]
    assert len(named) > 40
    assert [name for name in named if name not in output] == []
