"""Features, rules and segments as people read them."""

import orjson
import pytest
from process import sample_document

from tornado_gateway import core
from tornado_gateway.console.descriptions import EVERYONE, describe_features, describe_node, describe_segment, sentence

FEATURES = [feature["key"] for feature in sample_document()["features"]]


@pytest.fixture(scope="module")
def settings():
    return core.compile_settings(sample_document())


def test_the_sample_account_in_words(settings):
    features = {feature["key"]: feature for feature in describe_features(settings)}
    assert list(features) == FEATURES
    texts = {key: [rule["text"] for rule in feature["rules"]] for key, feature in features.items()}
    assert texts["new-checkout"] == [
        "Rollout for everyone: Everyone",
        "A/B test when plan is gold or silver: Two steps 50 %, One step 50 %",
    ]
    assert texts["free-shipping"] == [
        "Rollout when country is Germany or (country is United States and region is California): Warehouse countries",
        "Personalization when device type is mobile or tablet: Phones and tablets",
    ]
    assert texts["loyalty"] == [
        "Rollout when not customer is guest: Members",
        r"Personalization when email matches ^[^@]+@shop\.example$: Staff",
        "Personalization when referrer contains partner and not market starts with test-: Partners",
        "Personalization when points is greater than 5000: Platinum",
    ]
    assert texts["beta-console"] == [
        "A/B test for 50 % of the visitors when IP address starts with 192.0.2.: Read only 50 %, Full 50 %"
    ]
    assert texts["dark-mode"] == ["Rollout for 30 % of all visitors: Dark"]
    assert texts["landing-page"] == [
        "Rollout when the visitor sees variation 2 of web test 7: Same story as the advertisement"
    ]
    assert texts["promo-banner"][0] == "Personalization when customer is VIP in any case: VIP"
    listed = [variation["listed"]["text"] for variation in features["beta-console"]["rules"][0]["variations"]]
    assert listed == ["always for user id is qa-anna", "always for user id is qa-ben or qa-chris or team is console"]
    assert features["recommendations"]["holdouts"][0]["text"] == "Withheld for 5 % of all visitors"
    assert features["search-ranking"]["rules"][0]["group"]["text"] == (
        "A visitor sees only one of Ranking model and List or grid, drawn with equal chances"
    )
    assert features["promo-price"]["rules"][0]["group"]["text"].endswith(
        "Banner for VIPs first, otherwise drawn: Banner text 70 %, Size of the discount 30 %"
    )
    assert features["new-checkout"]["metrics"][0]["revenue_property"] == "amount"
    assert features["free-shipping"]["needs"] == {"location": True, "device": True, "lists": []}


def custom(operand):
    return {"custom_variable": {"plan": operand}}


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        ({}, EVERYONE),
        (custom("gold"), "plan is gold"),
        (custom(""), "plan is empty"),
        (custom("lower(Gold)"), "plan is Gold in any case"),
        (custom("wildcard(*old*)"), "plan contains old"),
        (custom("wildcard(g*)"), "plan starts with g"),
        (custom("wildcard(*d)"), "plan ends with d"),
        (custom("wildcard(gold)"), "plan is gold"),
        (custom("regex(^g)"), "plan matches ^g"),
        (custom("gt(5)"), "plan is greater than 5"),
        (custom("gte(5)"), "plan is at least 5"),
        (custom("lt(5)"), "plan is less than 5"),
        (custom("lte(5)"), "plan is at most 5"),
        (custom("inlist(abc)"), "plan is in the list abc"),
        ({"custom_variable": {"_vwoUserId": "u"}}, "the user’s uuid or id is u"),
        ({"user": "a, b,c"}, "user id is a, b or c"),
        ({"ua": "wildcard(*Firefox*)"}, "user agent contains Firefox"),
        ({"ip_address": "192.0.2.1"}, "IP address is 192.0.2.1"),
        ({"os_version": "gte(17.4)"}, "version of the operating system is at least 17.4"),
        ({"browser_version": "lt(90)"}, "version of the browser is less than 90"),
        ({"campaignVariation": "7"}, "the visitor is in web test 7"),
        ({"campaignVariation": "7_2"}, "the visitor sees variation 2 of web test 7"),
        ({"campaignVariation": "7_!2"}, "the visitor sees another variation than 2 of web test 7"),
        ({"campaignVariation": "!7"}, "the visitor is not in web test 7"),
        ({"or": [{"featureId": {"9": "on"}}]}, "the visitor has been decided on dark-mode before"),
        ({"or": [{"featureId": {"9": "off"}}]}, "the visitor has not been decided on dark-mode before"),
        ({"not": custom("gold")}, "not plan is gold"),
        ({"and": [custom("gold"), {"user": "a"}]}, "plan is gold and user id is a"),
        ({"or": [custom("gt(5)"), custom("x")]}, "plan is greater than 5 or plan is x"),
        ({"or": [{"os": "wildcard(mac*)"}]}, "operating system starts with mac"),
        ({"or": [{"browser_string": ["Chrome", "Safari"]}]}, "browser is Chrome or Safari"),
        ({"and": [{"country": "Germany"}]}, "country is Germany"),
        (
            {"and": [{"country": "Germany"}, custom("gold")]},
            "country is Germany (the SDKs skip a location beside other conditions) and plan is gold",
        ),
        ({"or": [{"country": "Germany"}]}, "country is Germany (never true: locations count only inside “all of”)"),
        ({"unknown": "x"}, "unknown is 'x' (never true: the engine does not know this condition)"),
        ({"and": [[]]}, "a malformed condition: [] (aborts the decision)"),
    ],
    ids=lambda value: value if isinstance(value, str) else orjson.dumps(value).decode(),
)
def test_a_segment_reads_as_a_person_would_say_it(segment, expected):
    assert sentence(describe_segment(segment, sample_document())) == expected


def test_a_joint_check_is_one_line():
    assert describe_node({"country": "Germany", "city": "Fulda"}, {}) == "country is Germany and city is Fulda"
    assert describe_node({"os": ["iOS"], "device_type": ["tv", "mobile"]}, {}) == (
        "operating system is iOS or device type is tv or mobile"
    )
