"""Builds the gateway from pyproject.toml: in pure Python, or with its hot modules compiled by mypyc.

    pip install .                                pure Python
    TORNADO_GATEWAY_COMPILE=1 pip install .      compiled; fails without a C compiler and Python's headers

An editable installation is never compiled: it runs what is edited.
"""

import os
import sys
import tomllib
from pathlib import Path

from setuptools import setup

# The rooms that run in every request, and that compile settings. The others mostly wait for the kernel, SQLite and
# libraries in C. Each list becomes one library; they are built at the same time.
PARTS = {
    "tornado_gateway.core": ["core/[!_]*"],
    "tornado_gateway.front": [
        "gate",
        "http/[!_]*",
        "experiments/[!_]*",
        "environments/[!_]*",
        "api/[!_]*",
        "api/ofrep/[!_]*",
        "events/[!_]*",
        "telemetry/environment_counts",
        "telemetry/layout",
        "telemetry/observer",
    ],
}
LIBRARIES = [
    (sorted(str(path) for part in parts for path in Path("tornado_gateway").glob(f"{part}.py")), name)
    for name, parts in PARTS.items()
]

MYPY = "mypy==2.4.1"  # generates the C code, so another version gives another build. Also in conf/build.lock
IS_WANTED = os.environ.get("TORNADO_GATEWAY_COMPILE", "0") not in ("", "0") and "editable_wheel" not in sys.argv
IS_BUILT = not {"egg_info", "dist_info"} & set(sys.argv)  # pip asks what a build needs before it builds


def libraries():
    """Return the extension modules, one for each of LIBRARIES."""
    from mypyc.build import mypycify

    made = mypycify(
        # The same settings wherever it is built. The types are checked by scripts/check.
        ["--config-file=", "--ignore-missing-imports", *(path for paths, _ in LIBRARIES for path in paths)],
        separate=LIBRARIES,
        opt_level="2",  # as fast as 3, and a third of the time
        debug_level="0",
    )
    for library in made:  # compilers differ in their warnings about generated code, which must not fail an installation
        library.extra_compile_args = [flag for flag in library.extra_compile_args if flag != "-Werror"]
    return made


def needed():
    """Return mypy and the dependencies of the gateway, because mypy reads their types."""
    with Path("pyproject.toml").open("rb") as file:
        return [MYPY, *tomllib.load(file)["project"]["dependencies"]]


setup(
    license="Apache-2.0",
    ext_modules=libraries() if IS_WANTED and IS_BUILT else [],
    setup_requires=needed() if IS_WANTED and not IS_BUILT else [],
)
