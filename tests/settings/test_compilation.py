"""The compilation of a settings document: changes in words."""

from process import sample_document

from tornado_gateway.settings.compilation import SHOWN_CHANGES, describe_change, fingerprints_of


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
