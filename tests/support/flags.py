"""The flags of the sample account and their values for some visitors, by getFlag, for clients of OpenFeature."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from process import Gateway, sample_document
from vendor import Vendor

SAMPLE = sample_document()
FEATURES = [feature["key"] for feature in SAMPLE["features"]]
DEFAULTS = {"boolean": True, "string": "default", "integer": -1, "double": -1.5, "json": {"default": True}}


class Expected(NamedTuple):
    """What a client gets for a flag. `default` is what it passes, and gets if `is_default`."""

    key: str
    type: str
    default: Any
    value: Any
    is_default: bool = False


def fixtures(**options: object) -> tuple[Any, Any]:
    """The fixtures `vendor` and `gateway` of a module: a gateway of the sample account with these options."""

    @pytest.fixture(scope="module")
    def vendor() -> Iterator[Vendor]:
        with Vendor(SAMPLE) as vendor:
            yield vendor

    @pytest.fixture(scope="module")
    def gateway(vendor: Vendor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
        with Gateway.of_vendor(tmp_path_factory.mktemp("flags") / "data", vendor, **options) as gateway:
            yield gateway
            assert "Traceback" not in gateway.log()

    return vendor, gateway


def visitor(number: int) -> dict[str, Any]:
    """The attributes of a visitor."""
    return {"plan": ("gold", "free")[number % 2], "country": ("DE", "US", "IN")[number % 3], "age": 18 + number % 50}


def context(number: int, **attributes: Any) -> dict[str, Any]:
    return {"targetingKey": f"user-{number}", **visitor(number), **attributes}


def types_of(feature_key: str) -> dict[str, str]:
    """The variables of a feature and their types, over all variations."""
    feature = next(feature for feature in SAMPLE["features"] if feature["key"] == feature_key)
    ids = {rule["campaignId"] for rule in feature["rules"]}
    campaigns = [campaign for campaign in SAMPLE["campaigns"] if campaign["id"] in ids]
    variations = [variation for campaign in campaigns for variation in campaign["variations"]]
    return {one["key"]: one["type"] for variation in variations for one in variation["variables"]}


def expected(gateway: Gateway, context: dict[str, Any], feature_key: str) -> Iterator[Expected]:
    """What the feature and its variables are for a context, by getFlag."""
    variables = {name: value for name, value in context.items() if name != "targetingKey"}
    body = {"userId": context["targetingKey"], "featureKey": feature_key, "customVariables": variables}
    status, flag = gateway.post("/server-side/getFlag", body)
    assert status == 200
    yield Expected(feature_key, "boolean", not flag["isEnabled"], flag["isEnabled"])
    values = {one["key"]: one["value"] for one in flag["variables"]}
    for key, kind in types_of(feature_key).items():
        default = DEFAULTS[kind]
        yield Expected(f"{feature_key}.{key}", kind, default, values.get(key, default), key not in values)
