"""Long computations in turns: the same results as in one go, with yield points in between."""

import gc
import json
import sys
import tracemalloc
from unittest.mock import patch

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tornado_gateway.core import never_yield
from tornado_gateway.core.validation import LongArray
from tornado_gateway.settings.incremental_json import parse, parse_outline
from tornado_gateway.settings.pacing import PIECE_BYTES

SETTINGS = {
    "version": 1,
    "features": [{"id": n, "rules": [{"n": n}, {"n": -n}], "name": "}, {" * (n % 2)} for n in range(9)],
    "campaigns": [{"id": n, "segments": {"or": [{"user": "a"}, {"user": "b"}]}} for n in range(9)],
    "sdkKey": "k",
    "groups": {},
}
TEXTS = st.sampled_from(["", "a", "features", "}, {", "{", "\1", "é", '"', "\\"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**70) | st.floats(allow_nan=False) | TEXTS,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXTS, values, max_size=4),
    max_leaves=12,
)
OBJECTS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=8)
DOCUMENTS = st.dictionaries(TEXTS, OBJECTS | VALUES, max_size=5)


def result(work, document):
    """What comes of it, in the order in which it came; or the error."""
    try:
        return json.dumps(work(document))
    except orjson.JSONDecodeError as error:
        return str(error), error.pos


def parsed_in_pieces(document, piece_bytes):
    """Parse in both ways, and read the long arrays twice: all have to give the same."""
    parsed = parse(document, never_yield, piece_bytes)
    outline = parse_outline(document, never_yield, piece_bytes)
    for _ in range(2):
        assert json.dumps(_read(outline)) == json.dumps(parsed)
    return parsed


def _read(outline):
    if not isinstance(outline, dict):
        return outline
    return {key: list(value) if isinstance(value, LongArray) else value for key, value in outline.items()}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("piece_bytes", [1, 20, 100, 10_000])
def test_settings_in_pieces(piece_bytes, indent):
    document = json.dumps(SETTINGS, indent=indent).encode()
    assert result(lambda it: parsed_in_pieces(it, piece_bytes), document) == json.dumps(SETTINGS)


def test_it_yields_between_pieces():
    yields = []
    document = orjson.dumps({"features": [{"id": n} for n in range(9000)]})
    with patch.object(orjson, "loads", wraps=orjson.loads) as loads:
        parse(document, lambda: yields.append(1))
    assert loads.call_count == len(document) // PIECE_BYTES + 1 > 3
    assert len(yields) > loads.call_count


@given(DOCUMENTS, st.integers(1, 60), st.sampled_from([None, 0, 1]))
def test_the_same_as_in_one_go(value, piece_bytes, indent):
    document = json.dumps(value, indent=indent, ensure_ascii=False).encode()
    assert result(lambda it: parsed_in_pieces(it, piece_bytes), document) == result(orjson.loads, document)


def test_the_items_of_long_arrays_are_not_kept():
    document = orjson.dumps({"features": [{"id": n} for n in range(90_000)], "campaigns": [{}]})
    outline = parse_outline(document, never_yield)
    features = outline["features"]
    assert isinstance(features, LongArray)
    assert outline["campaigns"] == [{}]
    tracemalloc.start()
    try:
        assert sum(feature["id"] for feature in features) == sum(range(90_000))
        _, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert highest < len(document)  # all items take 18 times as much


def test_an_outline_is_freed_without_garbage_collection():
    document = orjson.dumps({"features": [{"id": n} for n in range(9000)]})
    before = sys.getrefcount(document)
    gc.disable()
    try:
        outline = parse_outline(document, never_yield)
        assert sys.getrefcount(document) > before
        del outline
        assert sys.getrefcount(document) == before
    finally:
        gc.enable()


DAMAGE = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"1", b" ", b""]


@given(DOCUMENTS, st.integers(1, 30), st.data())
def test_the_same_of_what_is_broken(value, piece_bytes, data):
    document = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place, length = data.draw(st.integers(0, len(document))), data.draw(st.integers(0, 1))
        document[place : place + length] = data.draw(st.sampled_from(DAMAGE))
    assert result(lambda it: parsed_in_pieces(it, piece_bytes), bytes(document)) == result(
        orjson.loads, bytes(document)
    )


ODD = [
    b'{"a":[{},{}],"b":1,"a":[{},{"x":1},{}]}',  # a key twice
    b'{"a":[{},{}],"a":[{},{}],"b":[]}',
    b'{"a":[{"\\u0001":1},{},{}],"b":[{},{}]}',
    b'{"\\u0001":[{},{}],"\\u0001":[{},{}]}',
    b"[{},{},{}]",
    b'{"a":[[{},{}],[{},{}]]}',
    b'{"a":{"b":[{},{}]},"c":[{},{}]}',
    b'{"a":[{"{":1},{},{}],"b":[{},{"}":1},{}]}',
    b'{"a":[{},{}]} {}',
    b'{"a":[{},{}',
    b'{"a":[{},{}],}',
    b'{"a":[{},,{}]}',
    b'{"a":[{},{},]}',
    b'{"a":[{}{}],"b":[{},{}]}',
    b'{"a":[{},{"b":"\x01"},{}]}',
    b'{"a":[{},{"b":"\xff"},{}]}',
    b'{"a":[{},{"b":"\\ud800"},{}]}',
    b"",
    b"null",
]


@pytest.mark.parametrize("document", ODD)
@pytest.mark.parametrize("piece_bytes", [1, 6, 9])
def test_the_same_of_what_is_odd(document, piece_bytes):
    assert result(lambda it: parsed_in_pieces(it, piece_bytes), document) == result(orjson.loads, document)
