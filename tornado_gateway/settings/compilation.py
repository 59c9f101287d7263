"""The compilation of a settings document: everything that takes time and depends on the document alone."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import orjson

from tornado_gateway import core
from tornado_gateway.core import YieldPoint, never_yield
from tornado_gateway.core.validation import each_of
from tornado_gateway.settings import incremental_json
from tornado_gateway.settings.documents import SettingsDocument, prepare_document
from tornado_gateway.settings.pacing import empty_gradually
from tornado_gateway.store.versions import digest_of

SHOWN_CHANGES = 20  # maximum number of features named in a log line

Fingerprints = Mapping[str, int]  # of each feature by its key


class CompiledDocument(NamedTuple):
    """A settings document as decisions, SDKs and the log need it. `digest` names its bytes."""

    settings: core.Settings
    digest: str
    served: SettingsDocument
    fingerprints: Fingerprints


def compile_document(document: bytes, sdk: core.Sdk, yield_point: YieldPoint = never_yield) -> CompiledDocument:
    """Parse and compile a document. Raise SettingsError if it cannot be used, also if it is not JSON."""
    gc.collect(1)  # so that `freeze` does not keep garbage
    with _without_collector():
        parsed = parse(document, yield_point)
        try:
            # The settings keep the bytes only, because the parsed document takes five times as much memory.
            read_again = partial(orjson.loads, document)
            compiled = CompiledDocument(
                core.compile_settings(parsed, sdk=sdk, yield_point=yield_point, read_again=read_again),
                digest_of(document),
                prepare_document(document, parsed, yield_point),
                fingerprints_of(parsed, yield_point),
            )
        finally:
            empty_gradually(parsed, yield_point)
        # Compiled settings have no cycles, and the garbage collector would block the loop while it searches them.
        gc.freeze()
    return compiled


def parse(document: bytes, yield_point: YieldPoint) -> Any:
    """Parse a document, without keeping the items of long arrays. Raise SettingsError if it is not JSON."""
    try:
        return incremental_json.parse_outline(document, yield_point)
    except orjson.JSONDecodeError as error:
        raise core.SettingsError((f"the settings document is not JSON: {error}",)) from error


@contextmanager
def _without_collector() -> Iterator[None]:
    """Disable the garbage collector: a compilation leaves no garbage, and searching for it would double its time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# --- Changes ---


def fingerprints_of(document: Mapping[str, Any], yield_point: YieldPoint = never_yield) -> Fingerprints:
    """Return a hash of each feature with the campaigns of its rules. Groups and holdouts are left out."""
    campaigns: dict[object, int] = {}
    for campaign in each_of(document["campaigns"]):
        campaigns[campaign["id"]] = _fingerprint(campaign)
        yield_point()
    fingerprints: dict[str, int] = {}
    for feature in each_of(document["features"]):
        linked = [campaigns.get(rule["campaignId"]) for rule in feature["rules"]]
        fingerprints.setdefault(feature["key"], hash((_fingerprint(feature), *linked)))
        yield_point()
    return fingerprints


def _fingerprint(part: object) -> int:
    try:
        return hash(orjson.dumps(part, option=orjson.OPT_SORT_KEYS))
    except TypeError:  # too deeply nested for orjson: its changes are not logged
        return 0


def describe_change(before: Fingerprints | None, after: Fingerprints) -> str:
    """Return the number of features and the changed ones, for the log."""
    if before is None:
        return f"{len(after)} features"
    differing = {
        "+": after.keys() - before.keys(),
        "-": before.keys() - after.keys(),
        "~": [key for key, fingerprint in after.items() if before.get(key, fingerprint) != fingerprint],
    }
    # The loop waits for this, so a new name of each of 10,000 features would be too much.
    parts = list(islice((f"{sign}{key}" for sign, keys in differing.items() for key in sorted(keys)), SHOWN_CHANGES))
    if (count := sum(map(len, differing.values()))) > SHOWN_CHANGES:
        parts.append(f"and {count - SHOWN_CHANGES} more")
    return f"{len(after)} features" + (f" ({', '.join(parts)})" if parts else "")
