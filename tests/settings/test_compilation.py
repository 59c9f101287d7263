"""The compilation of a settings document: changes in words, and the memory that it needs."""

import re
import tracemalloc

import orjson
import pytest
from process import sample_document

from tornado_gateway import core
from tornado_gateway.core.validation import LongArray
from tornado_gateway.settings import incremental_json
from tornado_gateway.settings.compilation import SHOWN_CHANGES, compile_document, describe_change, fingerprints_of


def test_what_has_changed_in_words():
    before = fingerprints_of(sample_document())
    document = sample_document()
    assert describe_change(None, before) == "11 features"
    assert describe_change(before, fingerprints_of(document)) == "11 features"
    rule = document["features"][0]["rules"][0]["campaignId"]
    campaign = next(campaign for campaign in document["campaigns"] if campaign["id"] == rule)
    campaign["percentTraffic"] = 1
    assert describe_change(before, fingerprints_of(document)) == "11 features (~new-checkout)"
    template = document["features"][0]
    document["features"] += [{**template, "id": 1000 + n, "key": f"n{n:02}"} for n in range(SHOWN_CHANGES + 4)]
    words = describe_change(before, fingerprints_of(document))
    assert words.startswith("35 features (+n00, +n01, ")
    assert words.endswith("+n19, and 5 more)")


# --- Long arrays ---


def numbered_document(features: int) -> dict:
    document = sample_document()
    template = document["features"][0]
    document["features"] += [{**template, "id": 1000 + n, "key": f"n{n}"} for n in range(features)]
    return document


def compiled_parts(document):
    settings = core.compile_settings(document)
    named = (settings.features, settings.variations_by_key, settings.group_features, sorted(settings.event_names))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(named))  # of predicates


@pytest.mark.parametrize("piece_bytes", [1, 500, 5000])
def test_settings_from_long_arrays_are_the_same(piece_bytes):
    document = numbered_document(30)
    read = incremental_json.parse_outline(orjson.dumps(document), core.never_yield, piece_bytes)
    assert isinstance(read["features"], LongArray)
    assert compiled_parts(read) == compiled_parts(document)
    assert fingerprints_of(read) == fingerprints_of(document)


WRONG = {
    "features": lambda document: document["features"][3].pop("key"),
    "campaigns": lambda document: document["campaigns"][2].update(type=1),
    "rules": lambda document: document["features"][4].pop("rules"),
    "weights": lambda document: next(
        campaign for campaign in document["campaigns"] if campaign["type"] == "FLAG_TESTING"
    )["variations"][0].update(weight="1"),
    "variations": lambda document: next(
        campaign for campaign in document["campaigns"] if campaign["type"] == "FLAG_ROLLOUT"
    ).update(variations={}),
    "groups": lambda document: document.update(groups=[{}, {}, {}]),
    "version": lambda document: document.update(version=[{}, {}, {}]),
    "an object": lambda document: document.update(features={"key": 1}),
}


@pytest.mark.parametrize("name", WRONG)
def test_problems_of_long_arrays_are_the_same(name):
    document = numbered_document(5)
    WRONG[name](document)
    problems = []
    for read in document, incremental_json.parse_outline(orjson.dumps(document), core.never_yield, 1):
        with pytest.raises(core.SettingsError) as raised:
            core.compile_settings(read)
        problems.append(raised.value.problems)
    assert problems[0] == problems[1]


def test_a_compilation_needs_little_memory_besides_the_settings():
    document = orjson.dumps(numbered_document(3000))
    tracemalloc.start()
    try:
        compiled = compile_document(document, core.Sdk("s", "1"))
        kept, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(compiled.settings.features) > 3000
    assert highest - kept < 2 * len(document)  # the parsed document takes five times its bytes
