"""Several environments in one gateway process: each has its own settings, events and failures."""

import pytest
from redis_servers import RedisServer, needs_redis_server
from several import (
    ACCOUNTS,
    KEYS,
    KeyedVendor,
    balance,
    gateway_of,
    statuses,
    track,
    visitors,
)

SECONDS = 60


@pytest.fixture
def vendor():
    with KeyedVendor() as vendor:
        yield vendor


@pytest.fixture(params=["embedded", pytest.param("redis", marks=needs_redis_server)])
def store(request, tmp_path):
    """The options of the store."""
    if request.param == "embedded":
        yield {}
        return
    with RedisServer(tmp_path / "redis") as redis:
        yield {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis.port}


def expected(count):
    return {(str(ACCOUNTS[name]), key): visitors(ACCOUNTS[name], name, count) for name, key in KEYS.items()}


def until_all_ready(vendor, gateway, names=KEYS):
    paths = [f"/ready?environment={name}" for name in names]
    vendor.wait_until(lambda: all(gateway.get(path)[0] == 200 for path in paths), SECONDS, gateway.log)


def until_balanced(vendor, gateway, delivered):
    """Workers that share a store count its waiting events from time to time."""

    def are_balanced():
        parts = statuses(gateway)
        counts = {name: (part["events"]["delivered"], balance(part)) for name, part in parts.items()}
        return counts == {name: (count, 0) for name, count in delivered.items()}

    vendor.wait_until(are_balanced, SECONDS, lambda: str(statuses(gateway)))


def test_every_environment_has_its_settings_and_its_events(tmp_path, vendor, store):
    with gateway_of(tmp_path, vendor, WORKERS=2, **store) as gateway:
        until_all_ready(vendor, gateway)
        for name, key in KEYS.items():
            query = f"a={ACCOUNTS[name]}&i={key}"
            assert gateway.get(f"/server-side/v2-settings?{query}")[1]["sdkKey"] == key
            load = track(gateway, key, name, 40)
            assert {exchange.status for exchange in load.exchanges} == {200}
        vendor.wait_until(lambda: vendor.users_by_key() == expected(40), SECONDS, gateway.log)
        until_balanced(vendor, gateway, dict.fromkeys(KEYS, 40))
