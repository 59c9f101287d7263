"""The verdicts of scripts/hostile and scripts/soak. With LONG_TESTS=1 both run for a moment."""

import itertools
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
import soak
from attacks import EVERYTHING, MIXED
from hostile import Phase
from length import IS_LONG
from process import ROOT
from steady_client import Sample
from watch import MB, Reading, percentile


def hostile_result(seconds=0.01, error="", memory=100 * MB, log_bytes=100, counts=None, general=()):
    phase = Phase("flood", 0.0, 10.0, counts or {"200": 5, "503": 1}, memory)
    samples = [Sample(number / 50, seconds, 0.0, error if number == 7 else "") for number in range(500)]
    return hostile.Result([phase], samples, samples, log_bytes, list(general))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"seconds": 0.2}, "p99 of the well-behaved client is 200 ms"),
        ({"error": "503"}, "1 requests of the well-behaved client failed, the first one: ['503']"),
        ({"memory": 256 * MB}, "a worker had 256 MB"),
        ({"log_bytes": 2 * MB}, "the log has 2.00 MB"),
        ({"counts": {"200": 9, "500": 1}}, "responses with 500: {'flood': 1}"),
        ({"general": ["tracebacks in the log"]}, "tracebacks in the log"),
    ],
)
def test_the_verdict_about_a_gateway_under_attack(changes, fault):
    result = hostile_result(**changes)
    assert hostile.faults(result) == ([] if fault is None else [fault])
    assert "| flood | 0 |" in hostile.table(result)


def test_without_samples_there_is_no_verdict():
    assert hostile.faults(hostile.Result()) == ["the well-behaved client got no response"]


BUSY = """
import asyncio, time

def keep_busy():
    until = time.thread_time() + 0.05
    while time.thread_time() < until:
        pass

async def main():
    asyncio.get_running_loop().call_later(0.1, keep_busy)
    for _ in range(24):
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


def test_the_longest_turn_is_measured_with_its_callbacks(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(Path(hostile.__file__).parent / "turns"),
        "TURNS_FOLDER": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", BUSY], env=environment, check=True, timeout=60)
    turns = hostile.turns_in(tmp_path)
    longest = max(turns, key=lambda turn: turn.seconds)
    assert longest.callbacks[0].startswith("keep_busy x1 ")
    assert longest.seconds >= 0.05
    result = hostile_result()
    result.turns = [hostile.Turn(5.0, longest.seconds, longest.callbacks)]
    assert "| keep_busy x1 " in hostile.turns_table(result)


def readings(**growth):
    """90 readings; each figure that is named grows by so much in the whole time."""
    start = {"memory_bytes": 80 * MB, "descriptors": 90, "connections": 80, "threads": 12, "data_bytes": 10 * MB}

    def figures(number):
        progress = max(0, number - 30) / 60
        return {name: int(value + growth.get(name, 0) * progress) for name, value in start.items()}

    return [Reading(number, **figures(number)) for number in range(90)]


@pytest.mark.parametrize(
    ("growth", "grows"),
    [
        ({}, []),
        ({"memory_bytes": 5 * MB, "descriptors": 6, "connections": 40, "data_bytes": 5 * MB}, []),
        ({"memory_bytes": 20 * MB}, ["memory_bytes"]),
        ({"descriptors": 12, "threads": 12}, ["descriptors", "threads"]),
        ({"connections": 80}, ["connections"]),
        ({"data_bytes": 20 * MB}, ["data_bytes"]),
    ],
)
def test_the_verdict_about_growth(growth, grows):
    result = soak.Result(readings(**growth), {"200": 1})
    assert [fault.split()[0] for fault in soak.faults(result)] == grows
    assert soak.table(result).count("\n") == 6


def test_growth_of_the_first_third_is_a_warm_up():
    cold = [Reading(0, 0, 0, 0, 0, 0)] * 30
    assert soak.faults(soak.Result(cold + readings()[:60], {"200": 1})) == []


def test_other_faults_of_a_soak():
    result = soak.Result(readings(), {"500": 2}, undelivered=3, general=["no"])
    assert len(soak.faults(result)) == 4


def test_percentiles():
    assert percentile([], 0.99) == 0
    assert percentile(list(range(100)), 0.99) == 99
    assert percentile(list(range(1000)), 0.99) == 990


@pytest.mark.parametrize("name", EVERYTHING | MIXED)
def test_each_attack_makes_bytes(name):
    attack = (EVERYTHING | MIXED)[name]
    blocks = list(itertools.islice(attack.blocks(random.Random(name)), 2))
    assert all(blocks) or name == "silent connections"


@pytest.mark.skipif(not IS_LONG, reason="LONG_TESTS is not set")
@pytest.mark.parametrize("script", ["hostile", "soak"])
def test_a_run_of_a_moment_ends_with_a_verdict(script):
    """It is too short for a verdict about times and growth."""
    command = [sys.executable, ROOT / "tests" / "support" / f"{script}.py", "30"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=600)
    assert result.returncode in (0, 1)
    assert result.stdout.startswith("| ")
    assert not re.search("with 500|tracebacks|accounting|not delivered|not ready", result.stdout)
