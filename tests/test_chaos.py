"""scripts/chaos: its plan and its verdict; a short run of everything with LONG_TESTS=1."""

import asyncio
import os
import shutil
import subprocess
from contextlib import suppress

import pytest
from chaos.plan import PARTS, plan
from chaos.traffic import Clients, Newcomers, requests_of
from chaos.verdict import (
    IN_FLIGHT,
    UNEXPLAINED,
    Evidence,
    Incident,
    Sending,
    Taken,
    change_problems,
    duplicates,
    problems,
    unbalanced,
)
from length import IS_LONG
from process import ROOT

KEY = ("visitor-1", "purchase", 1)
ACKNOWLEDGED = Sending(9.0, 9.1)
DELIVERED_ONCE = [Taken(10.0, 10.1)]
DELIVERED_TWICE = [Taken(10.0, 10.1), Taken(20.0, 20.1)]


def evidence(taken, *incidents, dead=(), sent=ACKNOWLEDGED):
    found = Evidence({KEY: sent}, {KEY: list(taken)} if taken else {}, incidents=list(incidents))
    found.dead.update(dead)
    return found


def test_the_same_seed_gives_the_same_faults():
    for store, parts in PARTS.items():
        steps = plan(7, store, 60)
        assert steps == plan(7, store, 60)
        assert steps != plan(8, store, 60)
        assert {step.part for step in steps} <= parts.keys()
        assert all(step.at + step.seconds <= 60.01 for step in steps)


def test_all_faults_occur_within_a_few_seeds():
    for store, parts in PARTS.items():
        wanted = {fault for faults, _ in parts.values() for fault in faults}
        assert {step.fault for seed in range(20) for step in plan(seed, store, 60)} == wanted


@pytest.mark.parametrize(("clients", "connections"), [(Clients, 1), (Newcomers, 3)])
async def test_newcomers_have_a_connection_for_each_request(clients, connections):
    accepted = []

    async def respond(reader, writer):
        accepted.append(writer)
        with suppress(asyncio.IncompleteReadError):  # the client has closed it
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        load = clients(server.sockets[0].getsockname()[1], requests_of("run"), connections=1, total=3)
        await load.run()
    assert [exchange.status for exchange in load.exchanges] == [200] * 3
    assert len(accepted) == connections


def test_an_acknowledged_event_that_never_arrived_is_lost():
    assert "1 acknowledged events are lost" in problems(evidence([]))[0]
    assert problems(evidence([], dead=[KEY])) == []
    assert problems(evidence([], sent=Sending(9.0, None))) == []  # its request was not acknowledged
    assert problems(evidence(DELIVERED_ONCE)) == []


def test_an_event_that_no_request_caused_is_a_problem():
    assert "no request caused" in problems(Evidence({}, {KEY: DELIVERED_ONCE}))[0]


def test_a_duplicate_without_a_fault_is_unexplained():
    assert "1 duplicates are unexplained" in problems(evidence(DELIVERED_TWICE))[0]


@pytest.mark.parametrize(
    ("cause", "incidents", "first"),
    [
        ("response of upstream lost or late", [], Taken(10.0, None)),
        ("worker killed", [Incident("death", 10.2, 10.3)], Taken(10.0, 10.1)),
        (UNEXPLAINED, [Incident("death", 18.0, 18.1)], Taken(10.0, 10.1)),  # it had been settled long ago
        (UNEXPLAINED, [Incident("death", 8.0, 8.1)], Taken(10.0, 10.1)),  # before the first delivery
        ("worker killed", [Incident("death", 18.0, 18.1), Incident("disk", 9.0, 12.0)], Taken(10.0, 10.1)),
        (UNEXPLAINED, [Incident("disk", 9.0, 12.0)], Taken(10.0, 10.1)),
        ("worker ended with requests in flight", [Incident("exit", 10.05, 10.1)], Taken(10.0, 10.2)),
        (UNEXPLAINED, [Incident("exit", 12.0, 12.1)], Taken(10.0, 10.1)),  # an orderly end settles first
        ("worker stopped", [Incident("stop", 10.05, 14.0)], Taken(10.0, 10.1)),
        ("worker stopped", [Incident("stop", 11.0, 19.0)], Taken(10.0, 10.1)),  # it lost its claims
        ("worker stopped", [Incident("stop", 14.0, 19.0)], Taken(10.0, 10.1)),  # its last heartbeat was at 12.9
        (UNEXPLAINED, [Incident("stop", 15.0, 19.0)], Taken(10.0, 10.1)),
        ("reply of Redis lost or late", [Incident("redis", 9.05, 9.2)], Taken(10.0, 10.1)),
        (UNEXPLAINED, [Incident("redis", 13.0, 14.0)], Taken(10.0, 10.1)),
        (UNEXPLAINED, [Incident("clock", 5.0, 30.0)], Taken(10.0, 10.1)),  # the clock is no reason
        (UNEXPLAINED, [Incident("upstream", 5.0, 30.0)], Taken(10.0, 10.1)),  # nor is a fault with a response
    ],
)
def test_a_duplicate_is_explained_by_the_fault_that_caused_it(cause, incidents, first):
    found = evidence([first, Taken(20.0, 20.1)], *incidents)
    assert [found_cause for _, found_cause, _, _ in duplicates(found)] == [cause]
    assert any("unexplained" in problem for problem in problems(found)) == (cause == UNEXPLAINED)


def test_a_worker_that_ended_without_a_fault_is_a_problem():
    death = Incident("death", 10.2, 10.3, "worker 5")
    assert problems(evidence(DELIVERED_ONCE, death)) == ["worker 5 ended without a fault"]
    assert problems(evidence(DELIVERED_ONCE, death, Incident("kill", 10.2, 10.2))) == []
    assert problems(evidence(DELIVERED_ONCE, death, Incident("clock", 9.0, 12.0))) != []


def test_a_killed_worker_explains_no_more_duplicates_than_it_had_in_flight():
    many = {("visitor", "purchase", number): DELIVERED_TWICE for number in range(2 * IN_FLIGHT + 1)}
    death = Incident("death", 10.2, 10.3, "worker 5")
    found = Evidence(dict.fromkeys(many, ACKNOWLEDGED), many, incidents=[death, Incident("kill", 10.2, 10.2)])
    assert problems(found) == [f"{2 * IN_FLIGHT + 1} duplicates after the end of worker 5"]


def test_counts_have_to_add_up():
    counts = {
        "received": 10,
        "delivered": 5,
        "waiting": 1,
        "dead": 2,
        "rejected": 2,
        "discarded": 0,
        "lost": 0,
        "unknown": 0,
    }
    assert unbalanced(counts) is None
    assert "not the sum" in unbalanced(counts | {"lost": 1})
    after = counts | {"received": 13, "delivered": 8}
    assert change_problems(counts, after, events=3, arrivals=3) == []
    assert change_problems(counts, after, events=4, arrivals=4) != []
    assert change_problems(counts, after | {"rejected": 3}, events=3, arrivals=3) != []
    assert change_problems(counts, after | {"delivered": 9}, events=3, arrivals=4) == []  # one was stored twice
    assert change_problems(counts, after | {"delivered": 9}, events=3, arrivals=3) != []


@pytest.mark.skipif(not IS_LONG, reason="takes a minute or two: LONG_TESTS=1")
@pytest.mark.parametrize("store", ["embedded", "redis"])
def test_a_short_run(store):
    if store == "redis" and not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed")
    command = [ROOT / "scripts" / "chaos", "1", "--store", store, "--seconds", "10"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=550, env=os.environ)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"passed: seed 1, {store} store" in result.stdout
