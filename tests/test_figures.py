"""The limits of sizes, without exceptions. `support/figures.py` measures and prints the figures."""

import math
from typing import NamedTuple

import figures
import pytest
from figures import files, rooms


class Figure(NamedTuple):
    measured: dict[str, float]
    limit: float
    special: dict[str, float] = {}  # other limits of single names


def for_modules(measure) -> dict[str, float]:
    return {figures.name_of(path): measure(path) for path in files()}


def for_rooms(measure) -> dict[str, float]:
    return {room: measure(paths) for room, paths in rooms().items()}


ASSEMBLIES = {
    "process/assembly.py": math.inf,
    "process/environments/build.py": math.inf,
    "cli/main.py": math.inf,  # the index of all commands
    "console/admin_pages.py": 15,  # the data of all endpoints for operators
    "environments/environment.py": 14,  # the class that holds all parts of an environment
}
FIGURES = {
    "files of a room": Figure(
        for_rooms(len),
        12,
        {
            "ground floor": 9,
            "core": 20,
            "console": 20,
            "http": 13,
            "store/redis": 13,
            "store/sqlite": 13,
            "telemetry": 14,
        },
    ),
    "lines of a module": Figure(for_modules(figures.lines_of), 450),
    "lines of a script of the console": Figure(figures.scripts(), 220),
    "attributes of a class": Figure(
        {name: size for path in files() for name, size in figures.classes(path).items()},
        15,
        {"http/connection.py:Connection": 22, "http/messages.py:Request": 16},
    ),
    "lines of a function": Figure({name: size for path in files() for name, size in figures.functions(path)}, 45),
    "p90 of the lines of functions": Figure(for_rooms(figures.ninth_decile), 15),
    "imported modules of ours": Figure(
        for_modules(lambda path: len(figures.own_imports(path))),
        12,
        ASSEMBLIES,
    ),
    "what and who in 1,000 words": Figure(for_rooms(figures.noun_clauses), 3),
    "nobody and somebody": Figure(for_modules(lambda path: len(figures.matches([path], figures.PERSONS))), 0),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_within_their_limits(name):
    measured, limit, special = FIGURES[name]
    assert {thing: size for thing, size in measured.items() if size > special.get(thing, limit)} == {}
