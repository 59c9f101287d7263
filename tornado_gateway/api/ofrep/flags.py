"""Features and their variables as OFREP flags, with responses that are made once for each outcome.

`<feature>` is a boolean flag, `<feature>.<variable>` the variable of the visitor's variation, and `<feature>.*` an
object of all of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from tornado_gateway import core
from tornado_gateway.api.ofrep.derived import Remembered
from tornado_gateway.api.ofrep.errors import flag_key
from tornado_gateway.api.ofrep.exposures import name_of
from tornado_gateway.api.ofrep.outcomes import Outcome, encoded, outcome_of
from tornado_gateway.core.types import Feature, RuleMatch
from tornado_gateway.http.messages import Response

SEPARATOR = "."
ALL = "*"
MAX_READY_BYTES = 8 * 1024 * 1024  # of the entries of outcomes that are remembered
MAX_ANSWERS_BYTES = 8 * 1024 * 1024  # the same for responses with one flag
LARGEST_FLOAT, LARGEST_INTEGER = 2**1023, 2**63  # larger values stay as they are
MAX_SPLITS = 64  # dots of a flag key that are tried
MAX_PATHS = 1000  # that are remembered with their flags
LONGEST_PATH = 256  # bytes of one

Key = tuple[object, ...]


class Flag:
    """A flag by its key: a feature (`variable` None), one of its variables, or all of them (`ALL`).

    There is one object for each flag of a settings document.
    """

    __slots__ = ("feature", "key", "variable")

    def __init__(self, key: str, feature: str, variable: str | None = None) -> None:
        self.key = key
        self.feature = feature
        self.variable = variable


class Ready(NamedTuple):
    """The entries of all flags of one feature for one outcome, as JSON objects without the braces around them.

    `entries` are by the flag's variable; None is the feature itself. `bulk` is those of a bulk response, joined.
    """

    entries: dict[str | None, bytes]
    bulk: bytes


class Answer:
    """The response with one flag, and the facts about the decision that it was made for.

    `shown` names its impressions.
    """

    __slots__ = ("experiment", "impressions", "response", "rollout", "shown")

    def __init__(self, decision: core.Decision, response: Response) -> None:
        self.rollout: RuleMatch | None = decision.rollout
        self.experiment: RuleMatch | None = decision.experiment
        self.impressions = decision.impressions.copy()
        self.shown = tuple(map(name_of, decision.impressions))
        self.response = response


class Flags:
    """The flags of one settings document. `by_path` has some of those that paths name, without a variable."""

    def __init__(self, settings: core.Settings) -> None:
        self.settings = settings
        self._variables: dict[str, tuple[str, ...]] = {}
        self._found: dict[tuple[str, str | None], Flag] = {}  # by key and attribute `key`
        self.by_path: dict[bytes, Flag] = {}
        self._ready: Remembered[Ready] = Remembered(MAX_READY_BYTES)
        self._answers: Remembered[Answer] = Remembered(MAX_ANSWERS_BYTES)
        self._latest: Remembered[Answer] = Remembered(MAX_ANSWERS_BYTES)  # nearly all of the same answers

    def at(self, path: bytes, variable: object) -> Flag | None:
        """Return the flag that the path of a request names, None if there is none. `variable`: see `find`."""
        flag = self.find(flag_key(path), variable)
        if flag is not None and variable is None and len(path) <= LONGEST_PATH:
            if len(self.by_path) >= MAX_PATHS:  # a flag has many spellings; the others are known again soon
                self.by_path.clear()
            self.by_path[path] = flag
        return flag

    def find(self, key: str, variable: object = None) -> Flag | None:
        """Return the flag of this key, None if there is none.

        `variable` is the attribute `key` of the context: the vendor's providers name the variable of a feature so.
        """
        name = variable if isinstance(variable, str) else None
        return self._found.get((key, name)) or self._find(key, name)

    def _find(self, key: str, name: str | None) -> Flag | None:
        feature = self.settings.features.get(key)
        if name is not None and (feature is None or name not in self._names(feature)):
            return self.find(key)
        flag = self._variable(key) if feature is None else Flag(key, feature.key, name)
        if flag is not None:
            self._found[key, name] = flag
        return flag

    def _variable(self, key: str) -> Flag | None:
        """Return the flag of `<feature>.<variable>` or `<feature>.*`, None if there is none."""
        features, found = self.settings.features, None
        for at in _separators(key):
            name, rest = key[:at], key[at + 1 :]
            candidate = features.get(name)
            if candidate is not None and (rest == ALL or rest in self._names(candidate)):
                found = Flag(key, candidate.key, rest)
        return found

    def answer(self, flag: Flag, decision: core.Decision) -> Answer:
        """Return the response with one flag for a decision without error.

        Nearly always it is that of the last decision with this variation and reason. To compare both costs less than
        to find it by all facts, whose parts would have to be fetched into the processor's cache.
        """
        latest = self._latest.get((flag, decision.variation, decision.reason))
        if (
            latest is not None
            and latest.rollout is decision.rollout
            and latest.experiment is decision.experiment
            and latest.impressions == decision.impressions
        ):
            return latest
        return self._other_answer(flag, decision)

    def _other_answer(self, flag: Flag, decision: core.Decision) -> Answer:
        key = flag, decision.reason, decision.rollout, decision.experiment, *decision.impressions
        answer = self._answers.get(key) or self._add_answer(key, flag, decision)
        latest = flag, decision.variation, decision.reason
        return self._latest.add(latest, answer, 2 * len(answer.response.body))

    def _add_answer(self, key: Key, flag: Flag, decision: core.Decision) -> Answer:
        body = entry(flag.key, self.ready(decision).entries[flag.variable])
        return self._answers.add(key, Answer(decision, Response(200, body)), 2 * len(body))

    def ready(self, decision: core.Decision) -> Ready:
        """Return the entries for a decision, which depend on its outcome only."""
        key = _outcome_key(decision)
        ready = self._ready.get(key)
        if ready is None:
            ready = self._make(decision)
            self._ready.add(key, ready, 2 * len(ready.bulk))  # the entries have the same bytes once more
        return ready

    def _make(self, decision: core.Decision) -> Ready:
        feature = self.settings.features[decision.feature_key]
        if decision.error is not None:
            entries: dict[str | None, bytes] = {
                None: b'"errorCode":"GENERAL","errorDetails":%b' % encoded(decision.error)
            }
            return Ready(entries, entry(feature.key, entries[None]))
        values = {variable["key"]: encoded(value_of(variable)) for variable in decision.variables}
        suffix = _suffix(outcome_of(self.settings, decision))
        entries = {None: b'"value":%b,%b' % (b"true" if decision.enabled else b"false", suffix)}
        missing = b'"reason":"DISABLED",%b' % suffix.partition(b",")[2]
        for name in self._names(feature):
            entries[name] = b'"value":%b,%b' % (values[name], suffix) if name in values else missing
        members = b",".join(b"%b:%b" % (encoded(name), value) for name, value in values.items())
        entries[ALL] = b'"value":{%b},%b' % (members, suffix) if decision.enabled else missing
        shown = [entry(feature.key, entries[None])]
        shown += [entry(f"{feature.key}{SEPARATOR}{name}", entries[name]) for name in self._listed(feature)]
        return Ready(entries, b",".join(shown))

    def _names(self, feature: Feature) -> tuple[str, ...]:
        """Return the keys of the feature's variables, in the order of their first mention."""
        names = self._variables.get(feature.key)
        if names is None:
            rules = (*feature.rollouts, *feature.experiments)
            variables = [one for rule in rules for variation in rule.variations for one in variation.variables]
            names = tuple(dict.fromkeys(one["key"] for one in variables if isinstance(one.get("key"), str)))
            self._variables[feature.key] = names
        return names

    def _listed(self, feature: Feature) -> list[str]:
        """Return the variables whose flags have a name that is no other flag's."""
        keys = {name: f"{feature.key}{SEPARATOR}{name}" for name in self._names(feature)}
        found = {name: self.find(key) for name, key in keys.items()}
        return [name for name, flag in found.items() if flag is not None and flag.feature == feature.key]


def _outcome_key(decision: core.Decision) -> Key:
    """Return the facts about a decision that its entries depend on."""
    return (
        decision.feature_key,
        decision.reason,
        decision.error,
        decision.rollout,
        decision.experiment,
        *decision.impressions,
    )


def entry(key: str, content: bytes) -> bytes:
    """Return a flag's entry as a JSON object."""
    return b'{"key":%b,%b}' % (encoded(key), content)


def value_of(variable: Mapping[str, Any]) -> Any:
    """Return a variable's value as its type demands: clients reject a whole number for a double, and the reverse.

    A value that does not fit its type, or is beyond the limits of clients, stays as it is.
    """
    value, kind = variable.get("value"), variable.get("type")
    if isinstance(value, bool):
        return value
    if kind == "double" and isinstance(value, int) and abs(value) < LARGEST_FLOAT:
        return float(value)
    if kind == "integer" and isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_INTEGER:
        return int(value)
    if kind == "json" and isinstance(value, str):
        try:
            return _parsed(value)
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            return value
    return value


def _parsed(text: str) -> Any:
    """Return the value of a JSON text. Raise an error of orjson if it is none, or nested too deeply for clients."""
    value = orjson.loads(text)
    orjson.dumps(value)
    return value


def _suffix(outcome: Outcome) -> bytes:
    metadata = outcome.metadata()
    shown: dict[str, Any] = {"reason": outcome.reason, "variant": outcome.variant}
    if metadata:
        shown["metadata"] = metadata
    return encoded(shown)[1:-1]


def _separators(key: str) -> list[int]:
    """Return the places of the first separators, the first one last, because it is the one that counts."""
    places: list[int] = []
    at = key.find(SEPARATOR)
    while at >= 0 and len(places) < MAX_SPLITS:
        places.append(at)
        at = key.find(SEPARATOR, at + 1)
    return places[::-1]
