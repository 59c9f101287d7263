"""The JSON reader of all endpoints."""

import json
import sys
from itertools import product

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import (
    MAX_DIGITS,
    MAX_LEVELS,
    MAX_TEXT_BYTES,
    document_problem,
    json_object,
    json_value,
)

REPAIRED = {
    "high at the end": (rb'"x\ud83d"', "x\ufffd"),
    "high before text": (rb'"\ud83dabcdef"', "\ufffdabcdef"),
    "high before another escape": (rb'"\uD83D\u0041\n"', "\ufffdA\n"),
    "high before a pair": (rb'"\ud83d\uD83d\uDe00"', "\ufffd\U0001f600"),
    "low alone": (rb'"\uDE00"', "\ufffd"),
    "low before high": (rb'"\ude00\ud83d"', "\ufffd\ufffd"),
    "beside an escaped backslash": (rb'"\\ud83d\\\ud83d\\\\ud83d"', "\\ud83d\\\ufffd\\\\ud83d"),
    "beside a pair": (rb'"\ud83d\ude00\ud83d"', "\U0001f600\ufffd"),
    "in a name": (rb'{"\ud83d":1}', {"\ufffd": 1}),
    "as bytes": (b'"a\xed\xa0\xbdb"', "a\ufffdb"),
    "a pair as bytes": (b'"\xed\xa0\xbd\xed\xb8\x80"', "\U0001f600"),
    "as bytes and escaped": (b'"\xed\xb8\x80\\ud83d\xc3\xa4"', "\ufffd\ufffd\u00e4"),
}


@pytest.mark.parametrize(("body", "value"), REPAIRED.values(), ids=REPAIRED)
def test_a9_lone_surrogates_become_the_replacement_character(body, value):
    read, repaired = json_value(body)
    assert read == value
    assert orjson.loads(repaired) == value


@pytest.mark.parametrize(
    "body",
    [rb'"\ud83"', rb'"\u"', b'"\\', b'"\xff\\ud83d"', b'"\xc3(\xed\xa0\x80"', b'"\xed\xa0', rb"\ud83d", b'{"a":', b""],
    ids=repr,
)
def test_a9_other_errors_stay_errors(body):
    with pytest.raises(RequestError, match="the body is not JSON"):
        json_object(body)


def test_a9_valid_json_is_not_touched():
    body = rb'{"a":"\\ud83d\ud83d\ude00"}'
    assert json_value(body) == ({"a": "\\ud83d\U0001f600"}, body)
    assert json_value(body)[1] is body


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(exclude_categories=[]), max_size=60))
def test_a9_any_text_of_javascript_is_read(text):
    """Python writes lone surrogates as JavaScript does: `\\ud83d`."""
    wanted = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert json_object(json.dumps({"t": text}).encode()) == {"t": wanted}
    raw = json.dumps({"t": text}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert json_object(raw) == {"t": wanted}


@pytest.mark.parametrize("piece", [rb"\ud83d", rb"\\", rb"\ud83d\ude00", b"\xed\xa0\x80", rb"\ud83", b"\\"], ids=repr)
def test_a9_large_bodies_are_repaired_piece_by_piece(piece):
    """A search that starts again for each surrogate would take hours for 8 MB; this one is done in moments."""
    body = b'{"t":"' + rb"\ud83d" + piece * ((8 << 20) // len(piece))
    for end in (b'"}', b""):
        try:
            assert json_value(body + end)[0]["t"][0] == "\ufffd"
        except RequestError as error:
            assert "not JSON" in str(error)  # noqa: PT017 - half an escape, no end, or MAX_REPAIRS


PIECES = {"plain": b"x", "quote": rb"\"", "backslash": rb"\\", "character": "\u00e4".encode(), "escape": rb"\u0041"}
SURROUNDINGS = {
    "alone": b"%b",
    "after texts": rb'["a","\\","b\"",%b,"c"]',
    "before numbers": b"[%b,%s]" % (b"%b", b"1," * 99 + b"1"),
}


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("around", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_a_text_is_too_long_from_one_byte_on(piece, around):
    size = len(orjson.loads(b'"%b"' % piece).encode())
    for extra, is_name in product((0, 1), (False, True)):
        text = b'"%b"' % (piece * (MAX_TEXT_BYTES // size) + b"x" * extra)
        body = around % (b'{%b:""}' % text if is_name else text)
        problem = document_problem(orjson.loads(body), body, 1 << 20)
        assert (problem is not None) == bool(extra), problem


def test_no_text_is_long_where_texts_are_far_from_each_other():
    for far in (b"1," * 70_000, b"[]," * 30_000, b" " * 70_000):
        body = b'["a",%b"b",%b"c"]' % (far, far)
        assert document_problem(orjson.loads(body), body, 1 << 20) is None


@pytest.mark.parametrize(("opening", "closing", "more"), [("[", "]", 0), ('{"a":', "}", 0), ('[[],{"b":1},', "]", 1)])
def test_levels_are_counted(opening, closing, more):
    for depth in range(MAX_LEVELS - 2, MAX_LEVELS + 2):
        body = (opening * depth + "1" + closing * depth).encode()
        problem = document_problem(orjson.loads(body), body)
        assert (problem is None) == (depth + more <= MAX_LEVELS)


@pytest.mark.parametrize("number", [b"7", b"-0.", b"1e-"], ids=["digits", "fraction", "exponent"])
@pytest.mark.parametrize("text", [b"", b"1" * 300], ids=["alone", "beside digits in a text"])
def test_a_number_is_too_long_wherever_it_stands(number, text):
    for before, extra in product(range(30), (0, 1)):
        whole = number.ljust(MAX_DIGITS + extra, b"0")
        body = b'["%b",%b,"%b"]' % (b"x" * before, whole, text)
        problem = document_problem(orjson.loads(body), body)
        assert (problem is not None) == bool(extra), (before, problem)


def calls_of(work):
    """Return the number of calls of Python functions, which cost a tenth of a microsecond each."""
    calls = []
    sys.setprofile(lambda frame, event, argument: event == "call" and calls.append(frame.f_code.co_name))
    try:
        work()
    finally:
        sys.setprofile(None)
    return len(calls)


@pytest.mark.parametrize("item", [b"1", b'"x"', b"1.5e300"], ids=["numbers", "texts", "floats"])
def test_the_limits_of_a_large_document_are_checked_with_few_calls(item):
    """One call for each value of an event of 256 KB held the loop for 13 ms."""
    body = b'{"d":[%b%b]}' % (b"[]," * 100, b",".join([item] * (200_000 // (len(item) + 1))))
    value = orjson.loads(body)
    assert calls_of(lambda: document_problem(value, body)) < 500
