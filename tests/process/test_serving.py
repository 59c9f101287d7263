"""Environments that leave and come back while others start."""

import asyncio
from types import SimpleNamespace

import pytest

from tornado_gateway.environments.access import Access
from tornado_gateway.errors import StartError
from tornado_gateway.process.environments.serving import Serving


class FakeServed:
    """An environment whose start, resumption and end take as long as the test wants."""

    owns_store = True

    def __init__(self, config, open_stores):
        self.config = config
        self.environment = SimpleNamespace(access=Access(config.name, is_default=False))
        self.identity = config.name, config.config.account_id
        self.is_open = False
        self.can_resume = True
        self.is_draining = False
        self.may_start, self.may_close = asyncio.Event(), asyncio.Event()
        self._open_stores = open_stores

    async def start(self):
        assert self.identity not in self._open_stores, "another one has this store"
        self._open_stores.add(self.identity)
        await self.may_start.wait()
        if self.config.config.fails:
            self._open_stores.discard(self.identity)
            raise StartError("it does not start", "")
        self.is_open = True

    async def stop(self):
        await self.may_close.wait()
        self._open_stores.discard(self.identity)

    def drain(self, done):
        done.add(self)
        self.is_draining = True

    def keep(self):
        self.is_draining = False

    async def resume(self):
        await self.may_start.wait()

    def change(self, config):
        self.config = config


def config_of(name, account=1, *, fails=False):
    own = SimpleNamespace(account_id=account, client_key_required=False, fails=fails)
    return SimpleNamespace(name=name, config=own)


A, B, C = (config_of(name) for name in "abc")
BROKEN = config_of("broken", fails=True)


async def serving_of(*configs):
    made, open_stores = [], set()

    def make(config, number):
        made.append(FakeServed(config, open_stores))
        return made[-1]

    serving = Serving(make, configs, lambda request: None)
    for one in made:
        one.may_start.set()
    await serving.start()
    return serving, made


async def turns():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_that_comes_back_is_kept_before_a_new_one_has_started():
    """Its events may be delivered meanwhile, and then it would be closed."""
    serving, made = await serving_of(A, B)
    await serving.change([A])
    b = serving.named("b") or made[1]
    assert b.is_draining
    change = asyncio.create_task(serving.change([A, B, C]))
    await turns()
    assert not b.is_draining
    made[2].may_start.set()
    await change
    assert serving.named("b") is b


async def test_one_that_comes_back_is_drained_again_if_a_new_one_does_not_start():
    serving, made = await serving_of(A, B)
    await serving.change([A])
    change = asyncio.create_task(serving.change([A, B, BROKEN]))
    await turns()
    made[2].may_start.set()
    made[2].may_close.set()
    with pytest.raises(StartError):
        await change
    assert made[1].is_draining
    assert serving.with_drained() == made[:2]


async def test_one_that_comes_back_while_it_is_closed_waits_for_its_store():
    serving, made = await serving_of(A, B)
    await serving.change([A])
    made[1].can_resume = False  # its events are delivered
    change = asyncio.create_task(serving.change([A, B]))
    await turns()
    made[1].may_close.set()
    await turns()
    assert len(made) == 3
    made[2].may_start.set()
    await change
    assert serving.named("b") is made[2]
