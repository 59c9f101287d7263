"""Row F3: signing out ends the session at the gateway, not only in the browser."""

import asyncio
import time

import pytest
from exchanges import exchange
from process import SAMPLE_SETTINGS, Gateway

from tornado_gateway.console.auth import SESSION_SECONDS, EndedSessions
from tornado_gateway.errors import StoreError
from tornado_gateway.store.reckoning import Clock
from tornado_gateway.store.sqlite.state import SqliteState

TOKEN = "correct-horse-battery"
OPTIONS = {"SETTINGS_FILE": SAMPLE_SETTINGS, "ADMIN_TOKEN": TOKEN}
HTTPS = {"X_Forwarded_Proto": "https"}


def sign_in(gateway, **headers):
    status, got, _ = exchange(gateway, "POST", "/admin/session", {"token": TOKEN}, **headers)
    assert status == 200
    return got["set-cookie"]


def statuses(gateway, cookie, **headers):
    """Of enough connections that each worker gets some."""
    return {exchange(gateway, "GET", "/admin/session", Cookie=cookie, **headers)[0] for _ in range(20)}


def wait_for_workers(gateway, count):
    deadline = time.monotonic() + 60
    while [worker["state"] for worker in gateway.status()["workers"]] != ["serving"] * count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_f3_a_session_ends_at_all_workers_and_stays_ended_after_a_restart(tmp_path):
    with Gateway(tmp_path / "data", WORKERS=2, **OPTIONS) as gateway:
        wait_for_workers(gateway, 2)
        one, other = (sign_in(gateway).split(";")[0] for _ in range(2))
        assert statuses(gateway, one) == {200}
        assert exchange(gateway, "DELETE", "/admin/session", b"{}", Cookie=one)[0] == 200
        assert statuses(gateway, one) == {401}
        assert statuses(gateway, other) == {200}
        gateway.terminate()
        gateway.start()
        assert (statuses(gateway, one), statuses(gateway, other)) == ({401}, {200})


def test_f3_with_tls_the_cookie_belongs_to_this_host_alone(tmp_path):
    with Gateway(tmp_path / "data", TRUSTED_PROXIES="127.0.0.0/8", **OPTIONS) as gateway:
        cookie, *attributes = sign_in(gateway, **HTTPS).split("; ")
        name, _, value = cookie.partition("=")
        assert name == "__Host-fme_gateway_session"
        assert {"Secure", "Path=/", "HttpOnly", "SameSite=Strict"} <= set(attributes)
        assert not [attribute for attribute in attributes if attribute.startswith("Domain")]
        assert statuses(gateway, cookie, **HTTPS) == {200}
        # A cookie that another host of the domain can set counts without TLS only.
        assert statuses(gateway, f"fme_gateway_session={value}", **HTTPS) == {401}
        headers = exchange(gateway, "DELETE", "/admin/session", b"{}", Cookie=cookie, **HTTPS)[1]
        assert '__Host-fme_gateway_session="";' in headers["set-cookie"]
        assert statuses(gateway, cookie, **HTTPS) == {401}


class State:
    """The records of a store that can fail or hang."""

    def __init__(self):
        self.records = {}
        self.failure = None
        self.calls = 0

    async def save_records(self, user_id, records, seconds):
        await self._fail()
        self.records |= {(user_id, key): record for key, record in records.items()}

    async def load_records(self, user_id, keys):
        await self._fail()
        return {key: self.records[user_id, key] for key in keys if (user_id, key) in self.records}

    async def _fail(self):
        self.calls += 1
        if self.failure == "hangs":
            await asyncio.Event().wait()
        if self.failure == "fails":
            raise StoreError("down")


@pytest.mark.parametrize("failure", ["fails", "hangs"])
async def test_f3_while_the_store_is_down_each_worker_knows_what_it_ended_itself(failure):
    """The console shows that the store is down, so it must not depend on it."""
    state = State()
    one, other = EndedSessions(state, patience_seconds=0.05), EndedSessions(state, patience_seconds=0.05)
    await one.add("a", until=1000, now=0)
    assert await other.has("a", now=1)
    state.failure = failure
    await one.add("b", until=1000, now=1)
    assert await one.has("b", now=1)
    assert not await other.has("b", now=1)
    calls = state.calls
    assert not await other.has("c", now=1)
    assert state.calls == calls  # it is not asked again at once


async def test_c4_an_ended_session_stays_ended_after_a_step_backwards(tmp_path):
    """Row C4: the cookie is valid again by the wall clock then, but the age of a stored record follows another one."""
    wall, uptime = 1_800_000_000.0, 5000.0
    state = SqliteState(tmp_path, clock=Clock(lambda: wall, lambda: uptime, lambda: "boot"))
    await state.open()
    until = wall + SESSION_SECONDS
    await EndedSessions(state).add("a", until, wall)
    uptime += SESSION_SECONDS + 3600
    wall += SESSION_SECONDS - 3600
    await state.forget_expired()
    assert await EndedSessions(state).has("a", now=wall)
    await state.close()


async def test_f3_ended_sessions_need_no_memory_after_their_time():
    ended = EndedSessions(None)
    for number in range(1000):
        await ended.add(str(number), until=number + 10, now=number)
    assert len(ended) <= 11
