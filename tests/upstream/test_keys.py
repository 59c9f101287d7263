"""The SDK keys of one environment, current and previous."""

import pytest

from tornado_gateway.errors import UpstreamError
from tornado_gateway.upstream.keys import Keys

REJECTED = UpstreamError("settings: VWO returned 401", 401)


def test_without_a_pause_a_rejected_key_is_tried_each_time():
    keys = Keys(["new"])
    keys.reject("new", REJECTED)
    assert keys.to_try() == ["new"]


def test_a_rejected_key_is_left_out_for_a_while():
    keys = Keys(["new", "old"], rejected_seconds=3600)
    keys.reject("new", REJECTED)
    assert keys.to_try() == ["old"]
    assert keys.to_try(rejected_ones=True) == ["new", "old"]
    keys.accept("new")
    assert keys.to_try() == ["new", "old"]


def test_if_all_keys_are_rejected_nothing_is_tried():
    keys = Keys(["new", "old"], rejected_seconds=3600)
    for key in keys.all:
        keys.reject(key, REJECTED)
    with pytest.raises(UpstreamError, match="401"):
        keys.to_try()
    keys.replace(["newer", "new"])
    assert keys.to_try() == ["newer", "new"]
