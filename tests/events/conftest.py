"""A store for the tests of the queue and of delivery."""

import pytest

from tornado_gateway.store.sqlite.events import open_sqlite


@pytest.fixture
def store(tmp_path, io_loop):
    store = open_sqlite(tmp_path)
    io_loop.run_sync(store.open)
    yield store.events
    io_loop.run_sync(store.close)
