"""Rows B1 and B2: environments that share a store never mix, and every event is sent under its own account and key."""

import asyncio
import contextlib

import orjson
import pytest
from load import Load
from process import Gateway, sample_document
from redis_servers import RedisServer, needs_redis_server
from vendor import Fault, Vendor

from tornado_gateway import core

KEYS = ("a" * 32, "b" * 32)
SECONDS = 60


def document(account_id, sdk_key):
    return orjson.dumps({**sample_document(), "accountId": account_id, "sdkKey": sdk_key})


def users(prefix, count):
    return {f"{prefix}-{number}" for number in range(count)}


def track(gateway, prefix, count):
    """Each visitor causes one event."""

    def request(number):
        return "/server-side/trackEvent", {"eventName": "purchase", "userId": f"{prefix}-{number}"}

    load = Load(gateway.port, request, connections=4, total=count)
    asyncio.run(load.run())
    assert {exchange.status for exchange in load.exchanges} == {200}


def visitors(account_id, names):
    return {core.visitor_uuid(str(account_id), name) for name in names}


def until_ready(vendor, *gateways):
    vendor.wait_until(lambda: all(gateway.get("/ready")[0] == 200 for gateway in gateways), SECONDS)


@pytest.fixture
def vendor():
    account = sample_document()["accountId"]
    with Vendor(sample_document()) as vendor:
        for key in KEYS:
            vendor.environments[key] = document(account, key)
        yield vendor


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path / "redis") as redis:
        yield redis


def gateway_of(tmp_path, vendor, key, name="data", **options):
    gateway = Gateway.of_vendor(
        tmp_path / name, vendor, SDK_KEY=key, FLUSH_EVENTS_INTERVAL=1, POLLING_TIME=300, SHUTDOWN_SECONDS=1, **options
    )
    gateway.log_path = tmp_path / f"{name}-{key[:4]}.log"
    return gateway


def change_of_key(tmp_path, vendor, **options):
    """Events wait under one account and key; the gateway is then configured with others."""
    account, other = sample_document()["accountId"], 777
    vendor.environments[KEYS[1]] = document(other, KEYS[1])
    vendor.event_faults.append(Fault(503, times=10**6))
    with gateway_of(tmp_path, vendor, KEYS[0], **options) as gateway:
        until_ready(vendor, gateway)
        track(gateway, "before", 30)
        gateway.kill()
    with gateway_of(tmp_path, vendor, KEYS[1], ACCOUNT_ID=other, **options) as gateway:
        until_ready(vendor, gateway)
        track(gateway, "after", 20)
        vendor.event_faults.clear()
        expected = {
            (str(account), KEYS[0]): visitors(account, users("before", 30)),
            (str(other), KEYS[1]): visitors(other, users("after", 20)),
        }
        vendor.wait_until(lambda: vendor.users_by_key() == expected, SECONDS, lambda: gateway.log()[-2000:])


def test_b2_stored_events_are_sent_under_the_key_under_which_they_were_accepted(tmp_path, vendor):
    change_of_key(tmp_path, vendor)


@needs_redis_server
def test_b2_the_same_with_redis_and_a_common_namespace(tmp_path, vendor, redis):
    change_of_key(tmp_path, vendor, REDIS_HOST="127.0.0.1", REDIS_PORT=redis.port, STORE_NAMESPACE="common")


def two_environments(tmp_path, vendor, names, **options):
    account = sample_document()["accountId"]
    with contextlib.ExitStack() as stack:
        gateways = [
            stack.enter_context(gateway_of(tmp_path, vendor, key, name, ALIASING_ENABLED="true", **options))
            for key, name in zip(KEYS, names, strict=True)
        ]
        until_ready(vendor, *gateways)

        def both_poll():
            polls = [call.query["i"] for call in vendor.settings_calls()]
            return all(polls.count(key) >= 4 for key in KEYS)

        vendor.wait_until(both_poll, SECONDS)
        for number, gateway in enumerate(gateways):
            track(gateway, f"env{number}", 40)
            body = {"userId": f"guest-{number}", "aliasId": "member"}
            assert gateway.post("/user-alias/setUserAlias", body) == (200, {"isAliasSet": True})
        expected = {
            (str(account), key): visitors(account, users(f"env{number}", 40)) for number, key in enumerate(KEYS)
        }
        vendor.wait_until(lambda: vendor.users_by_key() == expected, SECONDS, lambda: str(vendor.taken.keys()))
        path = f'/user-alias/getAliasUserId?accountId={account}&userId=["member"]'
        found = [gateway.get(path)[1][0]["userId"] for gateway in gateways]
        assert found == ["guest-0", "guest-1"]


@needs_redis_server
def test_b1_two_environments_on_one_redis_never_mix(tmp_path, vendor, redis):
    two_environments(tmp_path, vendor, ("one", "two"), REDIS_HOST="127.0.0.1", REDIS_PORT=redis.port)
    assert not [key for key in redis.command("KEYS", "*") if KEYS[0].encode() in key or KEYS[1].encode() in key]


def test_b1_two_environments_in_one_data_dir_never_mix(tmp_path, vendor):
    two_environments(tmp_path, vendor, ("data", "data"))
