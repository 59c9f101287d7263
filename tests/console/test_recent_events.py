"""The recent events of the console: bounded, the newest first, and cheap."""

import orjson

from tornado_gateway.console.recent_events import RECENT_BYTES, RECENT_ENTRIES, RecentEvents


def purchase(note):
    return {"d": {"visId": "X", "event": {"name": "purchase", "props": {"note": note}}}}


def test_recent_events_are_bounded_newest_first_and_whole():
    recent = RecentEvents()
    document = orjson.dumps(purchase("x"))
    recent.note([(1, orjson.dumps(purchase(str(number)))) for number in range(1000)])
    assert [event["document"]["d"]["event"]["props"]["note"] for event in recent.newest()[:2]] == ["999", "998"]
    assert len(recent.newest()) <= RECENT_ENTRIES
    many = RECENT_BYTES // len(document) + 50
    recent.note([(many, b"\n".join([document] * many))])
    assert recent.newest()[0]["name"] == "purchase"
    recent.note([(1, b"[1]"), (1, b"not json"), (1, b"{}")])
    assert recent.newest()[0]["name"] is None


def test_only_impressions_name_a_variation():
    """Conversions have the ids as well, always 1."""
    recent = RecentEvents()
    for name in ("purchase", "vwo_variationShown"):
        event = {"name": name, "props": {"id": 1, "variation": 2}}
        recent.note([(1, orjson.dumps({"d": {"visId": "X", "event": event}}))])
    assert [(event["campaign"], event["variation"]) for event in recent.newest()] == [(1, 2), (None, None)]


def test_what_the_tail_costs_an_event():
    """Group commits under load hold hundreds of events; of those it reads the last ones, and of each its beginning."""

    class Group(list):
        read = 0

        def __getitem__(self, key):
            taken = super().__getitem__(key)
            self.read += len(taken)
            return taken

        def __iter__(self):
            raise AssertionError("the whole group is read")

    group = Group([(2, b"x" * 2 * RECENT_BYTES)] * 100 * RECENT_ENTRIES)
    recent = RecentEvents()
    recent.note(group)
    assert group.read == RECENT_ENTRIES
    assert {len(body) for _, body in recent._tail} == {RECENT_BYTES}
