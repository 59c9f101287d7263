"""Row D7: patterns of settings match as in `re`, and end in time.

`translate` writes patterns for RE2; the tests compare its results with those of `re`. The others run under a limit.
"""

import random
import re
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from re2 import _re2

from core.documents import one_feature, rollout
from tornado_gateway.core import Context, compile_settings, decide
from tornado_gateway.core.operators import LONGEST_VALUE
from tornado_gateway.core.patterns import TIME_LIMIT, compile_pattern
from tornado_gateway.core.patterns.time_limit import SECONDS, TimeLimit
from tornado_gateway.core.patterns.translation import translate

ASCII = "".join(map(chr, range(128)))
DISASTROUS = [  # patterns, and texts for which `re` takes years
    (r".*,.*,.*,.*;$", "," * LONGEST_VALUE),
    (r"^([a-zA-Z0-9]+[._-]?)+@example\.com$", "a" * LONGEST_VALUE),
    (r"^(?:a|a|aa)+$", "a" * 4000 + "b"),
    (r"(?i)(\w+\s?)+$", "word " * 800 + "!"),
]
UNTRANSLATABLE = [  # `re` with a limit
    (r"^(?=(a+)+$)a", "a" * 4000 + "b"),
    (r"(a*)*\1b", "a" * 4000),
    (r"(?!b)a*a*b", "a" * 2000),  # few steps at each position, but many positions
    (r"^(?!.*test)([a-z]+[.]?)+@x$", "a" * 4000),
    (r"^(\w+\s?)+$", "ä" * 4000 + "!"),  # not ASCII
    (r"^(a+)+$", "a" * 4000 + "!\n"),  # `$` before a newline
    (r"(?:a{1,900}b?){1,9}c", "a" * 4000),  # too large for RE2
]


@pytest.fixture(autouse=True)
def rested() -> Any:
    """Each test begins with the whole limit."""
    time.sleep(max(0.0, TIME_LIMIT._careful_until - time.monotonic()))
    TIME_LIMIT.take_exceeded()


def found(pattern: str, text: str, flags: int = 0, at_start: bool = False) -> bool:
    search = compile_pattern(pattern, flags, at_start=at_start)
    assert search is not None
    return search(text)


# --- Disasters ---


@pytest.mark.parametrize(("pattern", "text"), DISASTROUS, ids=[pattern for pattern, _ in DISASTROUS])
def test_d7_re2_ends_and_its_result_is_certain(pattern: str, text: str) -> None:
    assert translate(pattern) is not None
    assert not found(pattern, text)
    assert TIME_LIMIT.take_exceeded() == ()


def test_d7_re2_finds_matches_in_such_texts() -> None:
    assert found(r".*,.*,.*,.*;$", "," * 4000 + ";")
    assert found(r"^([a-zA-Z0-9]+[._-]?)+@example\.com$", "a" * 4000 + "@example.com")


@pytest.mark.parametrize(("pattern", "text"), UNTRANSLATABLE, ids=[pattern for pattern, _ in UNTRANSLATABLE])
def test_d7_other_patterns_end_by_the_limit_and_are_named(pattern: str, text: str) -> None:
    assert not found(pattern, text)
    assert TIME_LIMIT.take_exceeded() == (pattern,)
    assert TIME_LIMIT.take_exceeded() == ()


def test_d7_the_limit_is_that_of_the_process_and_each_search_is_ended_only_once() -> None:
    for _ in range(3):
        assert not found(r"(a*)*\1b", "a" * 4000)
    time.sleep(3 * SECONDS)  # an alarm that is left rings in vain
    assert found(r"^(?=a)a", "a")
    assert TIME_LIMIT.take_exceeded() == (r"(a*)*\1b",)


def test_d7_after_a_search_was_ended_ordinary_ones_still_succeed() -> None:
    assert not found(r"(a*)*\1b", "a" * 4000)
    TIME_LIMIT.take_exceeded()
    assert found(r"^(?!.*test).*@example\.com$", "someone@example.com")
    assert found(r"\w+", "Jürgen")
    assert TIME_LIMIT.take_exceeded() == ()


def test_d7_many_searches_of_long_texts_are_not_even_started() -> None:
    """Counted instead of measured: a search that is not started takes no step of `re`."""
    limit = TimeLimit()
    compiled = re.compile(r"(?!b)a*a*b")
    started = time.monotonic()
    for _ in range(500):
        limit.matches(compiled, "a" * 4000)
    # Each of the 500 takes at least 5 ms on its own. A window of 100 ms has about 40 ms of searches.
    assert len(limit.exceeded) == 500
    assert time.monotonic() - started < 500 * 0.005


def test_d7_a_thread_has_no_limit_and_does_not_disturb_that_of_the_main_thread() -> None:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(found(r"^(?=a)a", "a")))
    thread.start()
    thread.join()
    assert results == [True]


def test_d7_a_process_that_was_suspended_does_not_end_its_search() -> None:
    """The limit is over by the clock of the wall, and the search has hardly begun."""
    limit = TimeLimit()
    limit._started = time.monotonic() - 1
    limit._ring(0, None)  # raises only when the search has used CPU time since then
    limit._started = None
    signal.setitimer(signal.ITIMER_REAL, 0)


def test_d7_an_alarm_that_rings_just_before_a_search_is_set_again() -> None:
    """At the worst moments: before the search, and after it has read the clock."""
    limit = TimeLimit()
    disaster, text = re.compile(r"(a*)*\1b"), "a" * 4000
    for _ in range(20):
        limit.matches(re.compile("a"), "a")
        alarm_at = limit._alarm_at
        while time.monotonic() < alarm_at - 0.00005:
            pass
        limit.matches(re.compile("a"), "a")
        limit._careful_until = 0.0
        assert not limit.matches(disaster, text)
    assert len(limit.exceeded) == 20


def test_d7_a_forked_process_sets_its_own_alarm() -> None:
    code = """if True:
        import os, re
        from tornado_gateway.core.patterns import TIME_LIMIT, compile_pattern
        search = compile_pattern(r"(a*)*\\\\1b")
        TIME_LIMIT.matches(re.compile("a"), "a")  # sets an alarm
        child = os.fork()
        assert not search("a" * 4000)
        if child:
            raise SystemExit(os.waitpid(child, 0)[1])
    """
    subprocess.run([sys.executable, "-c", code.replace("\\\\1", "\\1")], check=True, timeout=60)


def test_d7_no_alarm_rings_after_the_end_of_python() -> None:
    code = """if True:
        import atexit, re, signal
        atexit.register(lambda: print(signal.getitimer(signal.ITIMER_REAL)))  # called after those of later imports
        from tornado_gateway.core.patterns import TIME_LIMIT
        TIME_LIMIT.matches(re.compile("a"), "a")
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    """
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert printed.stdout == "(0.0, 0.0)\n"


# --- Equality with `re` ---


@pytest.mark.parametrize("end", ["c", "d"])
def test_d7_re2_gives_up_its_cache_and_not_the_result(end: str) -> None:
    """More states than RE2 may keep in memory."""
    text = "".join(random.Random(7).choices("ab", k=1000)) + "a" + "b" * 200 + end
    assert found("[ab]*a[ab]{200}c", text) is (end == "c")


def assert_equal(pattern: str, text: str, flags: int = 0) -> None:
    """Compare RE2 itself, not `compile_pattern`, which may use `re`."""
    translated = translate(pattern, flags)
    assert translated is not None, pattern
    program = _re2.RE2(translated.encode(), _re2.RE2.Options())
    assert program.ok(), translated
    compiled = re.compile(pattern, flags)
    for anchor, expected in (
        (_re2.RE2.Anchor.UNANCHORED, compiled.search(text)),
        (_re2.RE2.Anchor.ANCHOR_START, compiled.match(text)),
    ):
        assert (program.Match(anchor, text.encode(), 0, len(text))[0][0] >= 0) is (expected is not None), translated


CHARACTERS = ["a", "b", "k", "i", "s", "A", "é", "ı", "K", "ſ", "ß", "0", "_", "-", r"\.", " ", r"\n", r"\x1c", r"\x0b"]
CLASSES = [".", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "[a-k]", "[^a-k]", r"[\w.-]", r"[^\s@]", "[é-ü]", "[]^-]"]
CLASSES += [r"[^\W\d]", r"[\D\d]", r"[A-\xff]", "[^é]"]
POSITIONS = ["^", "$", r"\A", r"\Z", r"\b"]
REPEATS = ["?", "*", "+", "*?", "+?", "??", "{2}", "{0,2}", "{1,3}?", "{2,}", "{0}", "{,2}"]


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    groups = inner.map(lambda it: f"({it})") | inner.map(lambda it: f"(?:{it})") | inner.map(lambda it: f"(?P<n>{it})")
    flagged = st.builds("(?{}:{})".format, st.sampled_from(["i", "s", "m", "-i", "a", "i-s", "x"]), inner)
    repeated = st.builds("(?:{}){}".format, inner, st.sampled_from(REPEATS))
    alternatives = st.lists(inner, min_size=1, max_size=3).map("|".join).map("(?:{})".format)
    return groups | flagged | repeated | alternatives | st.lists(inner, max_size=4).map("".join)


ATOMS = st.sampled_from([*CHARACTERS, *CLASSES, *POSITIONS])
REPEATED_ATOMS = st.builds("{}{}".format, st.sampled_from([*CHARACTERS, *CLASSES]), st.sampled_from(REPEATS))
PATTERNS = st.recursive(ATOMS | REPEATED_ATOMS, larger, max_leaves=12)
TEXTS = st.text(st.sampled_from("abkisABKISz0_-. \n\t\x1c\x0b@[]^\x00\x7f") | st.sampled_from(ASCII), max_size=12)
FLAGS = st.sampled_from([0, re.I, re.M, re.S, re.A, re.I | re.M | re.S])


@settings(max_examples=600, deadline=None)
@given(PATTERNS, TEXTS, FLAGS)
@example("(?i)K", "k", 0)  # the sign for Kelvin
@example("[^K]", "k", re.I)
@example("(?:a|b|ab)*?c", "ababc", 0)
@example("(?s:.)(?-i:a)", "\nA", re.I)
@example(r"a\b|^$", "", 0)
def test_d7_re2_has_the_results_of_re(pattern: str, text: str, flags: int) -> None:
    assume(not text.endswith("\n"))
    try:
        re.compile(pattern, flags)
    except re.error:
        assume(False)
    if translate(pattern, flags) is not None:
        assert_equal(pattern, text, flags)


@settings(max_examples=300, deadline=None)
@given(PATTERNS, st.text(max_size=12) | TEXTS, FLAGS, st.booleans())
def test_d7_a_compiled_pattern_has_the_results_of_re_in_any_text(
    pattern: str, text: str, flags: int, at_start: bool
) -> None:
    search = compile_pattern(pattern, flags, at_start=at_start)
    try:
        compiled = re.compile(pattern, flags)
    except re.error:
        assert search is None
        return
    assert search is not None
    expected = compiled.match(text) if at_start else compiled.search(text)
    assert search(text) is (expected is not None)
    assert TIME_LIMIT.take_exceeded() == ()


@pytest.mark.parametrize("flags", [0, re.I, re.S, re.A | re.I])
@pytest.mark.parametrize("pattern", [*CHARACTERS, *CLASSES])
def test_d7_every_character_is_as_in_re(pattern: str, flags: int) -> None:
    for character in ASCII:
        assert_equal(pattern, character, flags)


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"^[\w.+-]+@[\w-]+\.[a-z]{2,}$", r"^\+?[0-9 ()-]{7,20}$", r"^https?://", r"(?i)^(pro|enterprise)$", r"\d{4}"),
        *(r"^.*@(example|test)\.(com|org)$", r"^$", r"", r"^(?:[01]?\d|2[0-3]):[0-5]\d$", r"\bvip\b", r"^[A-Z]{2}\d+$"),
    ],
)
def test_d7_ordinary_patterns_are_translated(pattern: str) -> None:
    assert translate(pattern) is not None
    for text in ("someone@example.com", "12:30", "+49 (30) 1234567", "https://x", "Pro", "a vip b", "", "DE12", "x"):
        assert_equal(pattern, text)


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"(a)\1", r"(?P<n>a)(?P=n)", "a(?=b)", "a(?!b)", "(?<=a)b", "(?<!a)b", "(?>a*)b", "a*+b", "(a)?(?(1)b|c)"),
        *(r"(?:a?)*b", r"(?:|a)+b", r"(?:^|a)*b", r"a\Bb", "(?!)"),
    ],
)
def test_d7_patterns_without_a_certain_equivalent_stay_with_re(pattern: str) -> None:
    assert translate(pattern) is None
    for text in ("a", "ab", "aab", "aa", "", "ac", "é", "a" * 100 + "b", "a" * 100 + "ab"):
        assert found(pattern, text) is (re.search(pattern, text) is not None)


@pytest.mark.parametrize("text", ["x\n", "\n", "ä", "x" * 100 + "ä", "\ud800", "x\x00y"])
@pytest.mark.parametrize("pattern", ["x$", "^.$", r"\w", "(?i)Ä", r"\S+$", "x[^y]y"])
def test_d7_texts_for_which_the_translation_is_not_made(pattern: str, text: str) -> None:
    assert found(pattern, text) is (re.search(pattern, text) is not None)
    assert found(pattern, text, at_start=True) is (re.match(pattern, text) is not None)


@pytest.mark.parametrize("pattern", ["(", "[", "a{2}{3}", r"\p{L}", "(?<n>a)", "(?<=a*)b", "*"])
def test_invalid_patterns(pattern: str) -> None:
    assert compile_pattern(pattern) is None or re.compile(pattern)


# --- In decisions ---


def decided(segment: dict[str, Any], context: Context) -> Any:
    return decide(compile_settings(one_feature(rollout(segments=segment))), "f", context)


@pytest.mark.parametrize(("pattern", "text"), [*DISASTROUS, *UNTRANSLATABLE])
def test_d7_a_decision_ends(pattern: str, text: str) -> None:
    """Row D7: the worker hung forever."""
    segment = {"custom_variable": {"v": f"regex({pattern})"}}
    decision = decided(segment, Context("u", custom_variables={"v": text}))
    assert (decision.enabled, decision.error) == (False, None)
    assert decision.slow_patterns == (() if (pattern, text) in DISASTROUS else (pattern,))


def test_d7_conditions_on_devices_end_too() -> None:
    """The `*` of a wildcard is `.*`; a client may send its own device facts."""
    segment = {"or": [{"os": "wildcard(" + "*x" * 12 + ")"}]}
    context = Context("u", user_agent="agent", device={"os": "x" * 256 + "é" * 0 + "y"})
    decision = decided(segment, context)
    assert decision.error is None
    context = Context("u", user_agent="agent", device={"os": "é" * 8 + "y" * 240})
    assert not decided({"or": [{"os": "wildcard(" + "*y*y*y*y*y*y*y" + "x)"}]}, context).enabled


def test_d7_the_rest_of_the_segment_counts() -> None:
    slow = {"custom_variable": {"v": r"regex((a*)*\1b)"}}
    segment = {"or": [slow, {"not": slow}]}
    decision = decided(segment, Context("u", custom_variables={"v": "a" * 4000}))
    assert decision.enabled
    assert decision.slow_patterns == (r"(a*)*\1b",)
    assert decided(segment, Context("u", custom_variables={"v": "b"})).slow_patterns == ()


def test_unicode_versions_are_those_of_this_python() -> None:
    """Results in texts beyond ASCII are those of this `re` by construction, whatever the tables of RE2 are."""
    letter = "\N{LATIN SMALL LETTER A WITH DIAERESIS}"
    assert unicodedata.category(letter) == "Ll"
    assert found(r"^\w$", letter)
