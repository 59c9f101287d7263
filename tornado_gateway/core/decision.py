"""`decide`: which variation of a feature a user sees, and why (decision engine 3.1 and 3.2)."""

from typing import Any

from tornado_gateway.core.compiler import traced_twin
from tornado_gateway.core.context import Abort, Context
from tornado_gateway.core.evaluation import UNSET, Record, StoredRecords, Visit
from tornado_gateway.core.groups import Winners, passes
from tornado_gateway.core.holdouts import evaluate_holdouts, holdout_ids, holdout_impression, known_holdouts
from tornado_gateway.core.identity import is_web_uuid
from tornado_gateway.core.model import (
    AB,
    DISABLED_BODY,
    Feature,
    Holdout,
    Impression,
    Passed,
    Rule,
    Settings,
    Variation,
)
from tornado_gateway.core.records import read_record, write_record
from tornado_gateway.core.rules import choose_variation, forced_variation, in_traffic
from tornado_gateway.core.segments import HIDDEN_USER
from tornado_gateway.core.trace import Trace

INVALID_WEB_UUID = "UUID passed in context is not a valid UUID"


class Decision:
    """The outcome of one call.

    `reason` says why it ended: "rollout", "experiment", "whitelisted", "stored", "holdout", "no rule matched",
    "feature not found" or "error"; with "error", `error` has the message. `rollout` and `experiment` are the rules that
    were passed. `writes` are the records to store, in order. `debug` is the text of the debug event that a feature with
    a debugger asks for. `hidden_users` has `_vwoUserId` at the time of each impression, when post-segmentation asks.
    """

    __slots__ = (
        "debug",
        "error",
        "experiment",
        "feature_key",
        "hidden_users",
        "impressions",
        "reason",
        "rollout",
        "session_id",
        "usage",
        "uuid",
        "variation",
        "writes",
    )

    def __init__(self, feature_key: str, session_id: Any) -> None:
        self.feature_key = feature_key
        self.uuid: str | None = None
        self.session_id = session_id
        self.variation: Variation | None = None
        self.rollout: Passed | None = None
        self.experiment: Passed | None = None
        self.impressions: list[Impression] = []
        self.writes: list[Record] = []
        self.usage = False
        self.debug: str | None = None
        self.hidden_users: dict[int, object] | None = None
        self.reason = "no rule matched"
        self.error: str | None = None

    @property
    def enabled(self) -> bool:
        return self.variation is not None

    @property
    def variables(self) -> list[dict[str, Any]]:
        return self.variation.variables if self.variation else []

    @property
    def body(self) -> bytes:
        """The JSON answer to the client."""
        return self.variation.body if self.variation else DISABLED_BODY

    @property
    def rollout_id(self) -> Any:
        return self.rollout and self.rollout.id

    @property
    def rollout_key(self) -> Any:
        return self.rollout and self.rollout.key

    @property
    def rollout_variation_id(self) -> Any:
        return self.rollout and self.rollout.variation_id

    @property
    def experiment_id(self) -> Any:
        return self.experiment and self.experiment.id

    @property
    def experiment_key(self) -> Any:
        return self.experiment and self.experiment.key

    @property
    def experiment_variation_id(self) -> Any:
        return self.experiment and self.experiment.variation_id


def decide(
    settings: Settings,
    feature_key: str,
    context: Context,
    *,
    stored: StoredRecords | None = None,
    trace: Trace | None = None,
) -> Decision:
    """Decide which variation of a feature the user sees. Never raises: what cannot be evaluated is disabled.

    `stored` are the user's records by storage key (`Feature.storage_keys` lists which are read), None without a
    storage. With `trace`, the settings' traced twin decides, compiled when it is first needed: keep that off hot paths.
    """
    if trace is not None and not settings.is_traced:
        settings = traced_twin(settings)
    decision = Decision(feature_key, context.session_id)
    try:
        if context.use_id_for_web and (problem := context_problem(settings, context)):
            return _aborted(decision, problem, trace)
        decision.uuid = uuid_of(settings, context)
        visit = Visit(settings, context, stored, trace, decision.impressions, decision.writes)
    except UnicodeEncodeError as error:  # a lone surrogate in the user id or the seed
        return _aborted(decision, str(error), trace)
    if context.post_segmentation_variables and HIDDEN_USER in context.post_segmentation_variables:
        decision.hidden_users = {}
    try:
        _decide(visit, decision, feature_key)
    except Exception as error:  # the settings may contain anything: whatever fails disables the flag, as in the SDKs
        del decision.impressions[visit.sent :]
        return _aborted(decision, str(error) if isinstance(error, Abort) else repr(error), trace)
    if trace is not None:
        _trace_end(trace, decision)
    return decision


def context_problem(settings: Settings, context: Context) -> str | None:
    """Return why no call can be made for this user, or None: `useIdForWeb` demands a web uuid as id."""
    if context.use_id_for_web is not True or not settings.is_web_connected or is_web_uuid(context.user_id):
        return None
    return INVALID_WEB_UUID


def uuid_of(settings: Settings, context: Context) -> str | None:
    """Return the visitor uuid of a user; None for an empty id."""
    user_id: str = context.user_id
    if settings.is_web_connected and is_web_uuid(user_id):
        return user_id
    return settings.identify(user_id) if user_id else None


def _decide(visit: Visit, decision: Decision, feature_key: str) -> None:
    settings = visit.settings
    feature = settings.features.get(feature_key)
    record = read_record(visit, feature_key) if visit.stored is not None else None
    if record and _apply_record(visit, decision, feature, feature_key, record):
        return
    if feature is None:
        decision.reason = "feature not found"
        decision.usage = settings.is_mau and not visit.impressions
        return
    rollout = decision.rollout  # from the record
    if rollout is None:
        if feature.holdouts and _is_held_out(visit, decision, feature, record):
            return
        rollout = _pass_rollout(visit, decision, feature)
    shown = rollout if rollout and decision.reason == "rollout" else None
    if rollout or not feature.rollouts:
        shown = _pass_experiment(visit, decision, feature, shown)
    if visit.stored is not None:
        write_record(visit, feature_key, decision.rollout, decision.experiment, not_in=visit.not_in)
    if feature.is_debugged:
        decision.debug = _debug_message(feature_key, shown, decision.experiment)
    if feature.impact:
        _append_impression(visit, decision, feature.impact[decision.variation is not None])
    decision.usage = settings.is_mau and not visit.impressions


# --- what earlier decisions left ---------------------------------------------


def _apply_record(visit: Visit, decision: Decision, feature: Feature | None, feature_key: str, record: Record) -> bool:
    """Use the record of an earlier decision, as far as it still fits the settings. True when that ends the call."""
    is_in = holdout_ids(record.get("isInHoldoutId") or record.get("holdoutGroupId"))
    not_in = holdout_ids(record.get("notInHoldoutId"))
    if (is_in or not_in) and _stays_held_out(visit, decision, _required(feature), is_in, not_in):
        return True
    if record.get("experimentVariationId"):
        return _apply_experiment(visit, decision, feature, feature_key, record)
    if record.get("rolloutKey") and record.get("rolloutId"):
        _apply_rollout(visit, decision, feature, record)
    return False


def _stays_held_out(visit: Visit, decision: Decision, feature: Feature, is_in: list[Any], not_in: list[Any]) -> bool:
    if not any(holdout.id in is_in for holdout in feature.holdouts):
        return False
    new = evaluate_holdouts(visit, feature.id, feature.holdouts, [*is_in, *not_in])
    write_record(visit, feature.key, is_in=[*is_in, *new.matched], not_in=[*not_in, *new.not_matched])
    visit.impressions += new.impressions
    decision.usage = visit.settings.is_mau and not new.impressions
    decision.reason = "holdout"
    return True


def _apply_experiment(
    visit: Visit, decision: Decision, feature: Feature | None, feature_key: str, record: Record
) -> bool:
    key, variation_id = record.get("experimentKey"), record["experimentVariationId"]
    variation = visit.settings.find_variation(key, variation_id)
    _trace_record(visit, feature_key, f"experiment {key} variation {variation_id}", variation)
    if variation is None:
        return False
    decision.experiment = Passed(record.get("experimentId"), key, variation_id)
    if record.get("rolloutKey"):
        decision.rollout = Passed(record.get("rolloutId"), record["rolloutKey"], record.get("rolloutVariationId"))
    # The SDKs store the announcement alone and so forget the experiment; the record keeps it here.
    _announce(visit, _required(feature), record, decision.rollout, decision.experiment)
    decision.variation = variation
    decision.usage = visit.settings.is_mau and not visit.impressions
    decision.reason = "stored"
    return True


def _apply_rollout(visit: Visit, decision: Decision, feature: Feature | None, record: Record) -> None:
    key, variation_id = record["rolloutKey"], record.get("rolloutVariationId")
    variation = visit.settings.find_variation(key, variation_id)
    _trace_record(visit, decision.feature_key, f"rollout {key} variation {variation_id}", variation)
    if variation is None:
        return
    feature = _required(feature)
    visit.not_in = _announce(visit, feature, record)
    decision.rollout = Passed(record["rolloutId"], key, variation_id)
    decision.variation = variation
    decision.reason = "stored"
    visit.rollouts_passed.add(feature.key)


def _announce(
    visit: Visit, feature: Feature, record: Record, rollout: Passed | None = None, experiment: Passed | None = None
) -> list[Any]:
    """Send "not in" for holdouts that came after the stored decision. Return all holdouts the user is not in."""
    is_in, not_in = known_holdouts(record)
    new: list[Holdout] = [
        holdout for holdout in feature.holdouts if holdout.id not in is_in and holdout.id not in not_in
    ]
    if not new:
        return not_in
    not_in = [*not_in, *(holdout.id for holdout in new)]
    write_record(visit, feature.key, rollout, experiment, not_in=not_in)
    visit.impressions += [holdout_impression(holdout, feature.id, False) for holdout in new]
    visit.sent = len(visit.impressions)
    return not_in


def _required(feature: Feature | None) -> Feature:
    if feature is None:
        raise Abort("a decision is stored for a feature that does not exist")
    return feature


# --- rules -------------------------------------------------------------------


def _is_held_out(visit: Visit, decision: Decision, feature: Feature, record: Record | None) -> bool:
    is_in, not_in = known_holdouts(record)
    evaluated = evaluate_holdouts(visit, feature.id, feature.holdouts, is_in + not_in)
    visit.impressions += evaluated.impressions
    if not evaluated.matched:
        visit.not_in = evaluated.not_matched
        return False
    write_record(visit, feature.key, is_in=evaluated.matched, not_in=evaluated.not_matched)
    decision.reason = "holdout"
    return True


def _pass_rollout(visit: Visit, decision: Decision, feature: Feature) -> Passed | None:
    """Take the first rollout whose segment the user is in; only that one is asked for traffic."""
    for rule in feature.rollouts:
        if passes(visit, feature, rule, {}):
            visit.rollouts_passed.add(feature.key)
            if not in_traffic(visit, rule):
                return None
            decision.rollout = rule.outcomes[rule.variations[0].id]
            _show(visit, decision, rule.variations[0], "rollout")
            return decision.rollout
    return None


def _pass_experiment(visit: Visit, decision: Decision, feature: Feature, shown: Passed | None) -> Passed | None:
    """Take the first experiment that the user passes. Return the rollout that a debug message names."""
    winners: Winners = {}
    for rule in feature.experiments:
        if rule.kind is AB and (rule.is_forced or visit.context.variation_targeting_variables is None):
            variation = forced_variation(visit, rule)
            if variation is not None:
                decision.experiment = rule.outcomes[variation.id]
                _show(visit, decision, variation, "whitelisted")
                return shown
        if passes(visit, feature, rule, winners):
            variation = _bucketed_variation(visit, rule)
            if variation is None:
                return shown
            decision.experiment = rule.outcomes[variation.id]
            _show(visit, decision, variation, "experiment")
            return decision.rollout
    return shown


def _bucketed_variation(visit: Visit, rule: Rule) -> Variation | None:
    if not in_traffic(visit, rule):
        return None
    return choose_variation(visit, rule) if rule.kind is AB else rule.variations[0]


def _show(visit: Visit, decision: Decision, variation: Variation, reason: str) -> None:
    decision.variation = variation
    decision.reason = reason
    if decision.hidden_users is None:
        visit.impressions.append(variation.impression)
    else:
        _append_impression(visit, decision, variation.impression)


def _append_impression(visit: Visit, decision: Decision, impression: Impression) -> None:
    if decision.hidden_users is not None and visit.hidden is not UNSET:
        decision.hidden_users[len(visit.impressions)] = visit.hidden
    visit.impressions.append(impression)


# --- words -------------------------------------------------------------------


def _debug_message(feature_key: str, rollout: Passed | None, experiment: Passed | None) -> str:
    message = f"Flag decision given for feature:{feature_key}."
    if rollout:
        message += f" Got rollout:{_short(rollout.key, feature_key)} with variation:{rollout.variation_id}"
    if experiment:
        message += f" and experiment:{_short(experiment.key, feature_key)} with variation:{experiment.variation_id}"
    return message


def _short(key: str, feature_key: str) -> str:
    return key.removeprefix(f"{feature_key}_")


def _aborted(decision: Decision, error: str, trace: Trace | None) -> Decision:
    decision.variation = decision.rollout = decision.experiment = decision.debug = None
    decision.usage = False
    decision.reason = "error"
    decision.error = error
    if trace is not None:
        _trace_end(trace, decision)
    return decision


def _trace_end(trace: Trace, decision: Decision) -> None:
    trace.add(
        "end", feature=decision.feature_key, enabled=decision.enabled, reason=decision.reason, error=decision.error
    )


def _trace_record(visit: Visit, key: str, what: str, variation: Variation | None) -> None:
    if visit.trace is not None:
        visit.trace.add("stored", key=key, result=what if variation else f"{what} is no longer in the settings")
