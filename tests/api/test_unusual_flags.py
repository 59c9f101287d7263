"""OFREP with settings that are unusual: values that few JSON writers accept, no failure of one flag for all."""

import orjson
import pytest
from process import sample_document

from tornado_gateway import core
from tornado_gateway.api.ofrep.exposures import ExposureIndex
from tornado_gateway.api.ofrep.flags import Flags
from tornado_gateway.api.ofrep.outcomes import outcome_of

SURROGATE = "\ud800"


def ready(change):
    """The flags of the first feature with a changed variation."""
    document = sample_document()
    for campaign in document["campaigns"]:
        for variation in campaign["variations"]:
            change(variation)
    settings = core.compile_settings(document)
    decision = core.decide(settings, "new-checkout", core.context_from_json({}, "user-1"))
    return settings, Flags(settings).ready(decision), outcome_of(settings, decision)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("integer", 2**70, b'"value":1180591620717411303424,'),
        ("integer", 1e300, b'"value":1e+300,'),
        ("double", 2**70, b'"value":1.1805916207174113e+21,'),
        ("double", 2**2000, b'"value":11481306952742545242'),
        ("json", "[1e400]", b'"value":"[1e400]",'),
        ("json", {"a": 2**70}, b'"value":{"a":1180591620717411303424},'),
        ("string", SURROGATE, b'"value":"\\ud800",'),
    ],
)
def test_values_that_few_writers_accept_are_no_failure(kind, value, expected):
    """One such variable was a 500 with a traceback for its flag, and for every bulk evaluation (rule 0.14)."""

    def change(variation):
        variation["variables"] = [{"id": 1, "key": "k", "type": kind, "value": value}]

    _, made, _ = ready(change)
    assert made.entries["k"].startswith(expected)
    assert b'"key":"new-checkout.k"' in made.bulk


def test_names_and_ids_that_few_writers_accept_are_no_failure():
    settings, made, outcome = ready(lambda variation: variation.update(name=SURROGATE, id=2**70))
    assert b'"variant":"\\ud800"' in made.bulk
    assert ExposureIndex(settings).find([outcome.exposure]).unknown == 0


def test_large_whole_numbers_of_an_integer_stay_integers():
    def change(variation):
        variation["variables"] = [{"id": 1, "key": "k", "type": "integer", "value": 1e15}]

    assert orjson.loads(b"{%b}" % ready(change)[1].entries["k"])["value"] == 10**15
