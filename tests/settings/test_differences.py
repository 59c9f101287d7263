"""Differences of settings documents in words: examples, and none that is overlooked."""

import copy

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from process import sample_document

from tornado_gateway.settings.differences import MOST_CHANGES, differences

SAMPLE = sample_document()
ROLLOUT, TEST, SHIPPING = 0, 1, 2  # campaigns of the sample


def changed(change):
    document = copy.deepcopy(SAMPLE)
    change(document)
    return orjson.dumps(document)


def words(before, after):
    return [str(change) for change in differences(before, after)]


def campaign(number):
    return lambda document: document["campaigns"][number]


def narrow(document):
    document["campaigns"][ROLLOUT]["percentTraffic"] = 20
    document["features"][0]["rules"].pop()


def shift(document):
    first, second = document["campaigns"][TEST]["variations"]
    first["weight"], second["weight"] = 70, 30


def other_headline(document):
    document["campaigns"][TEST]["variations"][1]["variables"][0]["value"] = "Buy"


def other_audience(document):
    document["campaigns"][TEST]["segments"] = {}


def reorder(document):
    document["features"][0]["rules"].reverse()


def rename_key(document):
    document["sdkKey"] = "another-secret-key"


def other_goals(document):
    document["features"][0]["metrics"] = [{"id": 9, "identifier": "signUp", "type": "CUSTOM_GOAL"}]


RULE = "new-checkout: rule One step or two for members: "
EXAMPLES = {
    "traffic and a removed rule": (
        narrow,
        ["new-checkout: traffic 100 % -> 20 %, rule One step or two for members removed"],
    ),
    "weights": (
        shift,
        [f"{RULE}weight of variation Two steps 50 % -> 70 %, {RULE[14:]}weight of variation One step 50 % -> 30 %"],
    ),
    "variable": (other_headline, [f'{RULE}variable headline of variation One step "Buy in one step" -> "Buy"']),
    "audience": (other_audience, [f"{RULE}audience changed"]),
    "order": (reorder, ["new-checkout: order of rules changed"]),
    "secret": (rename_key, ["settings: SDK key changed"]),
    "goals": (
        other_goals,
        ["new-checkout: goal signUp added, goal purchase removed, goal addToCart removed"],
    ),
    "feature removed": (lambda document: document["features"].pop(0), ["new-checkout: feature removed"]),
    "status": (lambda d: d["features"][0].update(status="OFF"), ['new-checkout: status "ON" -> "OFF"']),
    "group": (lambda d: d["groups"]["1"].update(et=2), ["group Search: et 1 -> 2"]),
    "holdout": (
        lambda d: d["holdouts"][0].update(percentTraffic=7),
        ["holdout Without recommendations: traffic 5 % -> 7 %"],
    ),
    "unknown field": (lambda d: d.update(isNew={"a": [1]}), ['settings: isNew none -> {"a":[1]}']),
    "types": (lambda d: d.update(isMAU=0), ["settings: isMAU false -> 0"]),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_change_has_words(name):
    change, expected = EXAMPLES[name]
    assert words(orjson.dumps(SAMPLE), changed(change)) == expected


def test_equal_documents_have_no_difference_and_other_bytes_have_one():
    document = orjson.dumps(SAMPLE)
    assert words(document, document) == []
    assert words(document, orjson.dumps(SAMPLE, option=orjson.OPT_INDENT_2)) == [
        "settings: only the formatting differs"
    ]
    twice = changed(lambda d: d["campaigns"].insert(1, {**d["campaigns"][0], "name": "the same id"}))
    assert words(document, twice) != ["settings: only the formatting differs"]


def test_the_output_is_bounded():
    many = [{"key": f"feature-{number}", "rules": []} for number in range(3 * MOST_CHANGES)]
    found = differences(orjson.dumps(SAMPLE), changed(lambda d: d["features"].extend(many)))
    assert len(found) == MOST_CHANGES + 1
    assert str(found[-1]) == f"settings: {2 * MOST_CHANGES} further changes"
    deep = b"[" * 900 + b"]" * 900
    assert differences(b'{"a":' + deep + b"}", b'{"a":1}')


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)


def places(value, path=()):
    """Return the path of every value inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


PLACES = [place for place in places(SAMPLE) if place]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES | st.sampled_from([..., reversed])), min_size=1, max_size=3))
def test_two_different_documents_have_a_difference(edits):
    """`...` removes the value, `reversed` reverses a list."""
    document = copy.deepcopy(SAMPLE)
    for path, value in edits:
        parent = document
        try:
            for step in path[:-1]:
                parent = parent[step]
            if value is ...:
                del parent[path[-1]]
            elif value is reversed:
                parent[path[-1]] = list(reversed(parent[path[-1]]))
            else:
                parent[path[-1]] = value
        except (KeyError, IndexError, TypeError):  # an earlier edit has removed it
            continue
    before, after = orjson.dumps(SAMPLE), orjson.dumps(document)
    found = differences(before, after)
    assert bool(found) == (before != after)
    assert all(change.subject and all(change.texts) for change in found)
    assert before == after or words(before, after) != ["settings: only the formatting differs"]
