"""Sticky decisions through the gateway's endpoint and a real store, against the reference SDK with a storage connector.

Each sequence: decide, change the settings, decide again, for the same visitor.
"""

import asyncio
import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from environment_parts import environments_of

from core.generator import Generator
from core.sdk_reference import Reference
from core.test_against_sdk import is_new_holdout
from tornado_gateway.api.flags import FlagsApi
from tornado_gateway.core import SettingsError, compile_settings
from tornado_gateway.environments.evaluation import Evaluator, StickyDecisions
from tornado_gateway.events.queue import EventQueue
from tornado_gateway.http.messages import Request
from tornado_gateway.store.sqlite.events import open_sqlite

SEQUENCES = 500
CALLS_BEFORE_AND_AFTER = 3


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    reference = Reference()
    yield reference
    reference.close()


def test_500_sequences_agree(tmp_path: Path, reference: Reference) -> None:
    seen = asyncio.run(compare_sequences(tmp_path, reference))
    print(dict(seen))
    assert seen["sequences"] == SEQUENCES
    assert min(seen["enabled"], seen["disabled"], seen["would be another decision now"]) > 20


async def compare_sequences(directory: Path, reference: Reference) -> Counter[str]:
    store = open_sqlite(directory)
    await store.open()
    mirror = SimpleNamespace(current=None)
    queue = EventQueue(store.events, limit=10**9, chunk_events=100, durable=False)
    enrichment: Any = SimpleNamespace()
    evaluator = Evaluator(enrichment, enrichment, enrichment, sticky=StickyDecisions(store.state, 3600))
    flags = FlagsApi(environments_of(mirror, queue, store, evaluator=evaluator))
    await queue.start()
    seen: Counter[str] = Counter()
    seed = 0
    while seen["sequences"] < SEQUENCES:
        seed += 1
        generator = Generator(seed)
        before = generator.settings()
        after = changed(generator, before)
        try:
            compiled = [compile_settings(before), compile_settings(after)]
        except SettingsError:
            continue
        sequence = Sequence(generator, reference, f"visitor-{seed}")
        for number, (document, settings) in enumerate(zip((before, after), compiled, strict=True)):
            mirror.current = SimpleNamespace(settings=settings)
            flags.settings_changed(mirror.current)
            await sequence.compare(flags, document, settings, f"{seed}-{number}", seen)
        seen["sequences"] += 1
    await queue.stop()
    await store.close()
    return seen


class Sequence:
    """One visitor, with the records that the reference has stored of them."""

    def __init__(self, generator: Generator, reference: Reference, user: str) -> None:
        self.generator = generator
        self.reference = reference
        self.user = user
        self.records: dict[str, Any] = {}

    async def compare(self, flags: FlagsApi, document: Any, settings: Any, name: str, seen: Counter[str]) -> None:
        given: Any = document
        for _ in range(CALLS_BEFORE_AND_AFTER):
            feature_key = self.generator.feature_key(document)
            if is_new_holdout(settings, feature_key, self.records.get(feature_key)):
                continue  # where the product deliberately differs
            context = self.generator.context(document) | {"id": self.user}
            context.setdefault("_vwo", {"location": {}, "userAgent": {}})
            case = {"op": "getFlag", "context": context, "featureKey": feature_key, "name": name}
            expected = self.reference.run({**case, "storage": self.records, "settings": given})
            given = None
            answer = await self.ask(flags, context, feature_key)
            assert answer == {"isEnabled": expected["enabled"], "variables": expected["variables"]}, (name, case)
            fresh = self.reference.run({**case, "storage": None})
            self.records |= {write["featureKey"]: write for write in expected["writes"]}
            seen["enabled" if expected["enabled"] else "disabled"] += 1
            seen["would be another decision now"] += fresh["variables"] != expected["variables"]

    async def ask(self, flags: FlagsApi, context: Any, feature_key: str) -> Any:
        body = orjson.dumps({**context, "featureKey": feature_key})
        answer: Any = flags.get_flag(Request(b"POST", b"/server-side/getFlag", b"", [], body))
        return orjson.loads((await answer).body)


def changed(generator: Generator, document: Any) -> Any:
    """The document after what people do to running campaigns: other weights and traffic, rules and features gone."""
    after = copy.deepcopy(document)
    random = generator.random
    for campaign in after["campaigns"]:
        if random.random() < 0.5 and "percentTraffic" in campaign:
            campaign["percentTraffic"] = random.choice([0, 10, 100])
        if random.random() < 0.5:
            for variation in campaign["variations"]:
                variation["weight"] = random.choice([0, 20, 50, 100])
        if random.random() < 0.2:
            campaign["segments"] = {}
        if random.random() < 0.2:
            campaign["variations"].reverse()
    for feature in after["features"]:
        if random.random() < 0.2 and feature["rules"]:
            feature["rules"].pop(random.randrange(len(feature["rules"])))
    return after
