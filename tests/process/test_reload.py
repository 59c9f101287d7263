"""Reading ENVIRONMENTS_FILE again: no change is missed, however close it is to the one before."""

import asyncio

from several import block, write

from tornado_gateway.config import load
from tornado_gateway.errors import StartError
from tornado_gateway.process.environments.reload import Reload


class SlowServing:
    """Follows a change only when it may."""

    def __init__(self):
        self.names = []
        self.started, self.may_end = asyncio.Event(), asyncio.Event()

    async def change(self, environments):
        self.started.set()
        await self.may_end.wait()
        self.names.append([environment.name for environment in environments])


class FailingServing:
    """Cannot start a new environment at first."""

    def __init__(self, failures):
        self.failures = failures
        self.attempts = 0

    async def change(self, environments):
        self.attempts += 1
        if self.attempts <= self.failures:
            raise StartError("the store of staging cannot be opened")


def reload_of(tmp_path, serving, **options):
    file = tmp_path / "environments.toml"
    write(file, block("production"))
    config = load({}, {"ENVIRONMENTS_FILE": str(file), "DATA_DIR": str(tmp_path)})
    return Reload(config, serving, **options), file


async def test_a_change_during_a_reload_is_followed_by_the_next_check(tmp_path):
    serving = SlowServing()
    reload, file = reload_of(tmp_path, serving)
    first = asyncio.create_task(reload.check())
    await serving.started.wait()
    write(file, block("production"), block("staging"))
    serving.may_end.set()
    await first
    await reload.check()
    await reload.check()  # nothing has changed
    assert serving.names == [["production"], ["production", "staging"]]


async def test_a_signal_during_a_reload_is_followed_by_another_one(tmp_path):
    serving = SlowServing()
    reload, file = reload_of(tmp_path, serving)
    reload._reload_now()
    await serving.started.wait()
    write(file, block("staging"))
    reload._reload_now()
    serving.may_end.set()
    await asyncio.wait_for(asyncio.shield(reload._now), 60)
    assert serving.names == [["production"], ["staging"]]


async def test_changed_key_files_are_seen(tmp_path):
    serving = SlowServing()
    serving.may_end.set()
    reload, file = reload_of(tmp_path, serving)
    key = tmp_path / "key"
    key.write_text("d" * 32)
    write(file, block("production"), '[[environment]]\nname = "two"\naccount_id = 2\nsdk_key_file = "key"')
    await reload.check()
    key.write_text("e" * 33)
    await reload.check()
    assert serving.names == [["production", "two"]] * 2


async def test_a_path_that_cannot_exist_is_a_mistake_and_no_error_of_the_gateway(tmp_path):
    serving = SlowServing()
    serving.may_end.set()
    reload, file = reload_of(tmp_path, serving)
    await reload.check()
    file.write_text('[[environment]]\nname = "a"\naccount_id = 1\nsdk_key_file = "a\\u0000b"\n')
    await reload.check()
    assert "sdk_key_file" in reload.error
    await reload.check()
    assert serving.names == [["production"]]


async def test_an_environment_that_could_not_start_is_tried_again_although_the_file_stays(tmp_path):
    serving = FailingServing(2)
    reload, _ = reload_of(tmp_path, serving, retry_seconds=(0.0, 0.0))
    await reload.check()
    assert "store of staging" in reload.error
    await reload.check()
    await reload.check()
    assert (serving.attempts, reload.error) == (3, None)
    await reload.check()
    assert serving.attempts == 3


async def test_it_is_tried_again_after_a_backoff_only(tmp_path):
    serving = FailingServing(2)
    reload, file = reload_of(tmp_path, serving, retry_seconds=(3600.0, 3600.0))
    await reload.check()
    await reload.check()
    assert serving.attempts == 1
    write(file, block("production"), block("staging"))
    await reload.check()
    assert serving.attempts == 2
