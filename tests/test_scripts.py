"""scripts/run and scripts/setup on a new clone: which Python, which .venv, which packages."""

import os
import platform
import shutil
import subprocess
import sys

import pytest
from process import ROOT, free_port

VERSION = platform.python_version()
PARTS = ("setup.py", "pyproject.toml", "README.md", "conf", "scripts", "tornado_gateway")


@pytest.fixture
def clone(tmp_path):
    root = tmp_path / "clone"
    root.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root)
    return root


def run(clone, *command, **environment):
    variables = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root"), **environment}
    return subprocess.run(command, cwd=clone, env=variables, capture_output=True, text=True, timeout=300)


def make_program(directory, name, text):
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("script", ["run", "setup"])
@pytest.mark.parametrize("version", ["3.10.13", "3.9.18", "2.7.18"])
def test_an_older_python_is_named_in_one_line(clone, tmp_path, script, version):
    fake = make_program(tmp_path / "bin", "python3", f"echo {version}")
    result = run(clone, f"scripts/{script}", PATH=f"{fake.parent}:{os.environ['PATH']}")
    assert (result.returncode, result.stderr) == (1, f"needs Python 3.11 or newer, found {version}\n")
    assert not (clone / ".venv").exists()


def test_a_python_that_does_not_exist(clone):
    result = run(clone, "scripts/run", PYTHON="/none/python3")
    assert result.stderr == "needs Python 3.11 or newer, found none that runs as /none/python3\n"
    assert result.returncode == 1


def make_venv(clone):
    code = "source scripts/environment.sh; make_venv"
    result = run(clone, "bash", "-euo", "pipefail", "-c", code, PYTHON=sys.executable)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_a_venv_of_another_python_is_replaced_and_one_of_the_same_is_kept(clone):
    venv = clone / ".venv"
    make_program(venv, "left-over", "")
    make_program(venv / "bin", "python", "echo 3.9.1")
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.9.1\n")
    assert "replacing .venv" in make_venv(clone)
    assert not (venv / "left-over").exists()
    assert f"version = {VERSION}\n" in (venv / "pyvenv.cfg").read_text()
    (venv / "kept").touch()
    assert make_venv(clone) == ""
    assert (venv / "kept").exists()


def test_a_venv_whose_python_is_gone_is_replaced(clone):
    venv = clone / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to("/none/python3")
    (venv / "pyvenv.cfg").write_text(f"version = {VERSION}\n")
    assert "replacing .venv" in make_venv(clone)
    assert (venv / "bin/python").exists()


@pytest.mark.parametrize("script", ["run", "setup"])
def test_a_missing_package_index_is_explained_in_one_sentence(clone, tmp_path, script):
    url = f"http://user:hush@127.0.0.1:{free_port()}/simple"
    environment = {"PIP_INDEX_URL": url, "PIP_CONFIG_FILE": "/dev/null", "PIP_CACHE_DIR": str(tmp_path / "cache")}
    result = run(clone, f"scripts/{script}", PYTHON=sys.executable, **environment)
    shown = url.replace("user:hush@", "")
    assert result.returncode == 1
    assert result.stderr == (
        "installing into .venv ...\n"
        f"The package index {shown} cannot be reached: check the network, or set PIP_INDEX_URL to a mirror.\n"
    )
    assert not list((clone / ".venv").glob(".installed-*"))


def test_run_installs_the_gateway_only_and_only_once(clone, tmp_path):
    """An empty package cache; programs that would change the system leave a file if they are called."""
    for name in ("apt-get", "npm", "systemctl", "sudo"):
        make_program(tmp_path / "bin", name, f"touch {tmp_path}/called")
    environment = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    environment |= {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "PIP_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHON": sys.executable,
    }
    first = run(clone, "scripts/run", "--help", **environment)
    if "package index" in first.stderr:
        pytest.skip("no package index can be reached")
    assert first.returncode == 0, first.stderr
    assert "--polling-time" in first.stdout
    assert not (tmp_path / "called").exists()
    listed = run(clone, ".venv/bin/python", "-m", "pip", "list", "--format=freeze").stdout.splitlines()
    assert len(listed) < 25
    assert not [line for line in listed if line.startswith(("pytest", "mypy", "playwright"))]
    size = sum(path.lstat().st_size for path in (clone / ".venv").rglob("*") if not path.is_dir())
    assert size < 120 << 20
    second = run(clone, "scripts/run", "--help", **environment)
    assert (second.returncode, second.stderr) == (0, "")


# scripts/test, with programs in the place of all that it calls, which write down how they were called


@pytest.fixture
def called(clone):
    """Run scripts/test in the clone; returns its exit code and the calls that it made, in order."""
    for name in ("scripts/setup", "scripts/compile", ".venv/bin/python"):
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_program(path.parent, path.name, f'echo "$PYTHONPATH {name} $*" >> "$CALLS"; [ "$*" != "$FAILS" ]')

    def call(*arguments, fails="nothing"):
        calls = clone / "calls"
        calls.unlink(missing_ok=True)
        (clone / "build").mkdir(exist_ok=True)
        result = run(clone, "scripts/test", *arguments, PYTHONPATH="", CALLS=str(calls), FAILS=fails)
        return result.returncode, [line.replace(f"{clone}/", "").strip() for line in calls.read_text().splitlines()]

    return call


PYTEST = ".venv/bin/python -m pytest --durations=10"
EVERYTHING = f"{PYTEST} -n 5 --dist loadfile --no-loadscope-reorder"


def test_tests_that_are_given_are_compiled_by_pytest_if_at_all(called):
    expected = ["scripts/setup", f"{PYTEST} --compile tests/test_backoff.py -k x"]
    assert called("tests/test_backoff.py", "-k", "x") == (0, expected)
    assert called("-k", "x", fails="-m pytest --durations=10 --compile -k x")[0] == 1


def test_all_tests_run_in_both_builds(called):
    code, calls = called()
    assert (code, calls[:2]) == (0, ["scripts/compile", "scripts/compile --check"])
    (compiled,) = (line for line in calls[2:] if line.startswith("build/compiled "))
    assert f"{PYTEST} -o cache_dir=build/compiled-cache -q tests/core tests/http" in compiled
    assert sorted(calls[2:]) == sorted([compiled, EVERYTHING])
    assert called(fails=compiled.partition("python ")[2])[0] == 1
    assert called(fails=EVERYTHING.partition("python ")[2])[0] == 1


def test_at_most_three_failed_tests_get_a_second_chance_alone(clone, called):
    again = f"{PYTEST} --last-failed --last-failed-no-failures none"
    cache = clone / ".pytest_cache" / "v" / "cache"
    cache.mkdir(parents=True)
    everything = EVERYTHING.partition("python ")[2]
    for count, code in ((1, 0), (3, 0), (4, 1)):
        names = ",\n".join(f'  "tests/test_logs.py::test_{number}": true' for number in range(count))
        (cache / "lastfailed").write_text(f"{{\n{names}\n}}")
        ended, calls = called(fails=everything)
        assert (ended, again in calls) == (code, code == 0)


def test_without_a_compiler_there_is_one_build(called):
    assert called(fails="--check") == (0, ["scripts/compile", "scripts/compile --check", EVERYTHING])


def test_only_what_is_compiled(called):
    code, calls = called("--compiled", "tests/http/test_fields.py")
    assert code == 0
    expected = f"build/compiled {PYTEST} -o cache_dir=build/compiled-cache tests/http/test_fields.py"
    assert calls == ["scripts/compile", expected]


@pytest.mark.parametrize(
    ("selected", "compiles"),
    [("tests/test_backoff.py", False), ("tests/test_build.py", True), ("tests/test_build.py -k beside", False)],
)
def test_only_tests_of_the_compiled_build_make_it(clone, selected, compiles):
    shutil.copytree(ROOT / "tests", clone / "tests", ignore=shutil.ignore_patterns("node_modules", "data"))
    make_program(clone / "scripts", "compile", '[ "$*" = --check ] || touch made')
    options = ["--collect-only", "-q", "--compile", *selected.split()]
    result = run(clone, sys.executable, "-m", "pytest", *options)
    assert result.returncode == 0, result.stdout
    assert (clone / "made").exists() == compiles
