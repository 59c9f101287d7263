"""Both builds do the same: the compiled one, which is what is installed, and the one in pure Python."""

import asyncio
import runpy
import subprocess
import sys
from unittest.mock import patch

from builds import BUILDS, both_builds, needs_compiled
from ledger import acknowledged, arrived, visitor_requests
from load import Load, kill_after
from process import COMPILED, ROOT, SAMPLE_SETTINGS, Gateway, sample_document
from vendor import Vendor

from tornado_gateway import __version__


@both_builds
def test_each_says_which_it_is(build):
    environment = {"PYTHONPATH": str(BUILDS[build]), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "tornado_gateway", "--version"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout == f"{__version__} ({build})\n"


@both_builds
def test_each_decides_and_loses_nothing_when_it_is_killed(tmp_path, build):
    with (
        Vendor(sample_document()) as vendor,
        Gateway.of_vendor(tmp_path / "data", vendor, PYTHONPATH=BUILDS[build]) as gateway,
    ):
        load = Load(gateway.port, visitor_requests(0))
        asyncio.run(kill_after(gateway, load, 1000, 0.001))
        gateway.start(path="/ready")
        assert gateway.terminate() == 0
        lost = acknowledged(load.exchanges) - arrived(vendor)
    assert acknowledged(load.exchanges)
    assert not lost
    assert gateway.log().count(f"version {__version__} ({build})") == 2


def listed():
    """The modules that setup.py compiles."""
    with patch("setuptools.setup"), patch.object(sys, "argv", ["setup.py", "egg_info"]):
        names = runpy.run_path(str(ROOT / "setup.py"))
    return [path for paths, _ in names["LIBRARIES"] for path in paths]


@needs_compiled
def test_exactly_the_modules_that_are_listed_are_compiled():
    libraries = [path.relative_to(COMPILED) for path in COMPILED.rglob("*.so")]
    modules = {str(path.parent / path.name.partition(".")[0]) + ".py" for path in libraries if "__" not in path.name}
    assert modules == set(listed())


def test_nothing_compiled_lies_beside_the_sources():
    assert all((ROOT / name).exists() for name in listed())
    assert not list((ROOT / "tornado_gateway").rglob("*.so"))


ODD = [
    None,
    True,
    0,
    -1,
    1.5,
    2**63,
    -(2**63),
    "",
    "  ",
    "text",
    "é☃",
    [],
    [1],
    ["x", None],
    {},
    {"a": 1},
    {"1": {"b": []}},
]
CONTEXT = {"featureKey": "new-checkout", "userId": "user-1", "customVariables": {"plan": "gold"}}
FIELDS = (
    *("featureKey", "userId", "id", "customVariables", "variationTargetingVariables", "userAgent", "ipAddress"),
    *("sessionId", "useIdForWeb", "isDevMode", "bucketingSeed", "postSegmentationVariables", "platformVariables"),
    *("_vwo", "_wingify", "eventName", "eventProperties", "attributeKey", "attributeValue", "attributes", "storage"),
)


def odd_requests():
    """Bodies with one odd value each, as parsed JSON: what annotations promise, and compiled code insists on."""
    event, attribute = (
        {"eventName": "purchase", "userId": "u"},
        {"attributeKey": "k", "attributeValue": "v", "userId": "u"},
    )
    for path, body in (("getFlag", CONTEXT), ("trackEvent", event), ("setAttribute", attribute)):
        for value in ODD:
            yield f"/server-side/{path}", value
            for field in FIELDS:
                yield f"/server-side/{path}", body | {field: value}
            yield f"/server-side/{path}", body | {"customVariables": {"plan": value, "country": value}}
            yield f"/server-side/{path}", body | {"_vwo": {"location": value, "userAgent": value}}
            yield f"/server-side/{path}", body | {"platformVariables": {"webTestingCampaigns": value}}
    for value in ODD:
        yield "/events/t", value
        yield "/server-side/batch-events-v2", {"ev": value}
        yield "/server-side/batch-events-v2", {"ev": [value]}
        yield "/evaluate-event-dsl", value
        yield "/user-alias/setUserAlias", {"userId": value, "aliasId": value}
    yield from [("/server-side/getFlag", {"userId": "u", "featureKey": key}) for key in ODD if isinstance(key, str)]


@needs_compiled
def test_both_answer_odd_requests_alike(tmp_path):
    with (
        Gateway(tmp_path / "pure", SETTINGS_FILE=SAMPLE_SETTINGS, PYTHONPATH=ROOT) as pure,
        Gateway(tmp_path / "compiled", SETTINGS_FILE=SAMPLE_SETTINGS) as compiled,
    ):
        answers = [(path, body, pure.post(path, body), compiled.post(path, body)) for path, body in odd_requests()]
    assert [answer for answer in answers if answer[2] != answer[3]] == []
    assert {status for _, _, (status, _), _ in answers} == {200, 400}
