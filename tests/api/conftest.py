"""A gateway of the account of `endpoints`, for each module of tests."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from endpoints import GEOIP, MEMBERS, document
from process import Gateway
from sdk.wire import ask
from vendor import Vendor


@pytest.fixture(scope="module")
def vendor():
    with Vendor(document()) as vendor:
        vendor.lists = {"list-77": MEMBERS}
        yield vendor


@pytest.fixture(scope="module")
def gateway(vendor, tmp_path_factory):
    options = {
        "EVENTS_PER_REQUEST": 1,
        "MAX_EVENTS_PER_REQUEST": 3,
        "ALIASING_ENABLED": "true",
        "WEBHOOK_TOKEN": "let-me-in-987654321",
        "MAXMIND_DB_PATH": GEOIP,
        "SOCKET_TIMEOUT": 30,
        "STREAM_MAX_CONNECTIONS": 0,  # a stream ends at once
    }
    with Gateway.of_vendor(tmp_path_factory.mktemp("endpoints") / "data", vendor, **options) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log()


@pytest.fixture
def get(gateway):
    def get(target: str, headers: Mapping[str, str] | None = None):
        return ask(gateway.port, "GET", target, headers=headers)

    return get


@pytest.fixture
def post(gateway):
    def post(target: str, body: Any, headers: Mapping[str, str] | None = None):
        return ask(gateway.port, "POST", target, body if isinstance(body, bytes) else orjson.dumps(body), headers)

    return post
