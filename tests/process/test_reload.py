"""Reading ENVIRONMENTS_FILE again: no change is missed, however close it is to the one before."""

import asyncio

from several import block, write

from tornado_gateway.config import load
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


def reload_of(tmp_path, serving):
    file = tmp_path / "environments.toml"
    write(file, block("production"))
    config = load({}, {"ENVIRONMENTS_FILE": str(file), "DATA_DIR": str(tmp_path)})
    return Reload(config, serving), file


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
