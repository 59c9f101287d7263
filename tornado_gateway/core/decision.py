"""`decide` returns the variation of a feature that a user sees, and the reason (decision engine 3.1 and 3.2)."""

from collections.abc import Iterable
from typing import Any, Final

from tornado_gateway.core.compiler import with_tracing
from tornado_gateway.core.context import Abort, Context
from tornado_gateway.core.groups import Winners, passes
from tornado_gateway.core.holdouts import evaluate_holdouts, holdout_ids, holdout_impression, known_holdouts
from tornado_gateway.core.identity import is_web_uuid
from tornado_gateway.core.patterns import TIME_LIMIT
from tornado_gateway.core.records import read_record, write_record
from tornado_gateway.core.rules import choose_variation, forced_variation, in_traffic
from tornado_gateway.core.trace import Trace
from tornado_gateway.core.types import (
    AB,
    DISABLED_BODY,
    UNSET,
    VWO_USER_ID,
    Evaluation,
    Feature,
    Holdout,
    Impression,
    Rule,
    RuleMatch,
    Settings,
    StickyRecord,
    StoredRecords,
    Variation,
)

INVALID_WEB_UUID = "UUID passed in context is not a valid UUID"

OUTCOMES: Final = ("enabled", "disabled", "error", "not_found")  # as decisions are counted
_DISABLED: Final = 1
_OUTCOME_OF_REASON: Final = {"error": 2, "feature not found": 3}


class Decision:
    """The outcome of one call.

    `reason` is one of "rollout", "experiment", "whitelisted", "stored", "holdout", "no rule matched", "out of traffic",
    "lost group", "feature not found" or "error"; with "error", `error` is the message. `rollout` and `experiment` are
    the rules that were passed. `writes` are the records to store, in order. `debug` is the text of the debug event that
    a feature with a debugger asks for. `slow_patterns` are the regexes that exceeded their time, so that their
    conditions counted as not met. `vwo_user_ids` has `_vwoUserId` at the time of each impression, if post-segmentation
    names it.
    """

    __slots__ = (
        "debug",
        "error",
        "experiment",
        "feature_key",
        "impressions",
        "reason",
        "rollout",
        "session_id",
        "slow_patterns",
        "usage",
        "uuid",
        "variation",
        "vwo_user_ids",
        "writes",
    )

    def __init__(self, feature_key: str, session_id: Any) -> None:
        self.feature_key = feature_key
        self.uuid: str | None = None
        self.session_id = session_id
        self.variation: Variation | None = None
        self.rollout: RuleMatch | None = None
        self.experiment: RuleMatch | None = None
        self.impressions: list[Impression] = []
        self.writes: list[StickyRecord] = []
        self.usage = False
        self.debug: str | None = None
        self.slow_patterns: tuple[str, ...] = ()
        self.vwo_user_ids: dict[int, object] | None = None
        self.reason = "no rule matched"
        self.error: str | None = None

    @property
    def enabled(self) -> bool:
        return self.variation is not None

    @property
    def outcome(self) -> int:
        """The place of its outcome in OUTCOMES."""
        return 0 if self.variation is not None else _OUTCOME_OF_REASON.get(self.reason, _DISABLED)

    @property
    def variables(self) -> list[dict[str, Any]]:
        return self.variation.variables if self.variation else []

    @property
    def body(self) -> bytes:
        """The JSON response to the client."""
        return self.variation.body if self.variation else DISABLED_BODY


def decide(
    settings: Settings,
    feature_key: str,
    context: Context,
    *,
    stored: StoredRecords | None = None,
    trace: Trace | None = None,
) -> Decision:
    """Decide which variation of a feature the user sees. Never raises: a flag that cannot be evaluated is disabled.

    `stored` are the user's records by storage key (`Feature.storage_keys` lists which are read), None without a
    storage. With `trace`, the settings are compiled once more for tracing at the first call: keep that off hot paths.
    """
    if trace is not None and not settings.source.is_traced:
        settings = with_tracing(settings)
    decision = Decision(feature_key, context.session_id)
    try:
        if context.use_id_for_web and (problem := context_problem(settings, context)):
            return _aborted(decision, problem, trace)
        decision.uuid = uuid_of(settings, context)
        evaluation = Evaluation(settings, context, stored, trace, decision.impressions, decision.writes)
    except UnicodeEncodeError as error:  # a lone surrogate in the user id or the seed
        return _aborted(decision, str(error), trace)
    if context.post_segmentation_variables and VWO_USER_ID in context.post_segmentation_variables:
        decision.vwo_user_ids = {}
    try:
        _decide(evaluation, decision, feature_key)
    except Exception as error:  # any failure disables the flag, as in the SDKs
        del decision.impressions[evaluation.sent :]
        return _aborted(decision, str(error) if isinstance(error, Abort) else repr(error), trace)
    finally:
        if TIME_LIMIT.exceeded:
            decision.slow_patterns = TIME_LIMIT.take_exceeded()
            if trace is not None:
                trace.add("slow", patterns=list(decision.slow_patterns))
    if trace is not None:
        _trace_end(trace, decision)
    return decision


def exposure(settings: Settings, context: Context, impressions: Iterable[Impression]) -> Decision:
    """Return an earlier decision as far as its events need it: a client has reported what the visitor was shown."""
    decision = Decision("", context.session_id)
    decision.uuid = uuid_of(settings, context)
    decision.impressions = list(impressions)
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


def _decide(evaluation: Evaluation, decision: Decision, feature_key: str) -> None:
    settings = evaluation.settings
    feature = settings.features.get(feature_key)
    record = read_record(evaluation, feature_key) if evaluation.stored is not None else None
    if record and _apply_record(evaluation, decision, feature, feature_key, record):
        return
    if feature is None:
        decision.reason = "feature not found"
        decision.usage = settings.is_mau and not evaluation.impressions
        return
    rollout = decision.rollout  # from the record
    if rollout is None:
        if feature.holdouts and _is_held_out(evaluation, decision, feature, record):
            return
        rollout = _pass_rollout(evaluation, decision, feature)
    shown = rollout if rollout and decision.reason == "rollout" else None
    if rollout or not feature.rollouts:
        shown = _pass_experiment(evaluation, decision, feature, shown)
    if evaluation.stored is not None:
        write_record(evaluation, feature_key, decision.rollout, decision.experiment, not_in=evaluation.not_in)
    if feature.is_debugged:
        decision.debug = _debug_message(feature_key, shown, decision.experiment)
    if feature.impact:
        _append_impression(evaluation, decision, feature.impact[decision.variation is not None])
    decision.usage = settings.is_mau and not evaluation.impressions


# --- Records of earlier decisions ---


def _apply_record(
    evaluation: Evaluation, decision: Decision, feature: Feature | None, feature_key: str, record: StickyRecord
) -> bool:
    """Use the record of an earlier decision as far as it fits the settings. Return True if that ends the call."""
    is_in = holdout_ids(record.get("isInHoldoutId") or record.get("holdoutGroupId"))
    not_in = holdout_ids(record.get("notInHoldoutId"))
    if (is_in or not_in) and _stays_held_out(evaluation, decision, _required(feature), is_in, not_in):
        return True
    if record.get("experimentVariationId"):
        return _apply_experiment(evaluation, decision, feature, feature_key, record)
    if record.get("rolloutKey") and record.get("rolloutId"):
        _apply_rollout(evaluation, decision, feature, record)
    return False


def _stays_held_out(
    evaluation: Evaluation, decision: Decision, feature: Feature, is_in: list[Any], not_in: list[Any]
) -> bool:
    if not any(holdout.id in is_in for holdout in feature.holdouts):
        return False
    new = evaluate_holdouts(evaluation, feature.id, feature.holdouts, [*is_in, *not_in])
    write_record(evaluation, feature.key, is_in=[*is_in, *new.matched], not_in=[*not_in, *new.not_matched])
    evaluation.impressions += new.impressions
    decision.usage = evaluation.settings.is_mau and not new.impressions
    decision.reason = "holdout"
    return True


def _apply_experiment(
    evaluation: Evaluation, decision: Decision, feature: Feature | None, feature_key: str, record: StickyRecord
) -> bool:
    key, variation_id = record.get("experimentKey"), record["experimentVariationId"]
    variation = evaluation.settings.find_variation(key, variation_id)
    _trace_record(evaluation, feature_key, f"experiment {key} variation {variation_id}", variation)
    if variation is None:
        return False
    decision.experiment = RuleMatch(record.get("experimentId"), key, variation_id)
    if record.get("rolloutKey"):
        decision.rollout = RuleMatch(record.get("rolloutId"), record["rolloutKey"], record.get("rolloutVariationId"))
    # The SDKs store the announcement alone and so forget the experiment; the record keeps it here.
    _announce(evaluation, _required(feature), record, decision.rollout, decision.experiment)
    decision.variation = variation
    decision.usage = evaluation.settings.is_mau and not evaluation.impressions
    decision.reason = "stored"
    return True


def _apply_rollout(evaluation: Evaluation, decision: Decision, feature: Feature | None, record: StickyRecord) -> None:
    key, variation_id = record["rolloutKey"], record.get("rolloutVariationId")
    variation = evaluation.settings.find_variation(key, variation_id)
    _trace_record(evaluation, decision.feature_key, f"rollout {key} variation {variation_id}", variation)
    if variation is None:
        return
    feature = _required(feature)
    evaluation.not_in = _announce(evaluation, feature, record)
    decision.rollout = RuleMatch(record["rolloutId"], key, variation_id)
    decision.variation = variation
    decision.reason = "stored"
    evaluation.rollouts_passed += (feature.key,)


def _announce(
    evaluation: Evaluation,
    feature: Feature,
    record: StickyRecord,
    rollout: RuleMatch | None = None,
    experiment: RuleMatch | None = None,
) -> list[Any]:
    """Send "not in" for holdouts that came after the stored decision. Return all holdouts the user is not in."""
    is_in, not_in = known_holdouts(record)
    new: list[Holdout] = [
        holdout for holdout in feature.holdouts if holdout.id not in is_in and holdout.id not in not_in
    ]
    if not new:
        return not_in
    not_in = [*not_in, *(holdout.id for holdout in new)]
    write_record(evaluation, feature.key, rollout, experiment, not_in=not_in)
    evaluation.impressions += [holdout_impression(holdout, feature.id, False) for holdout in new]
    evaluation.sent = len(evaluation.impressions)
    return not_in


def _required(feature: Feature | None) -> Feature:
    if feature is None:
        raise Abort("a decision is stored for a feature that does not exist")
    return feature


# --- Rules ---


def _is_held_out(evaluation: Evaluation, decision: Decision, feature: Feature, record: StickyRecord | None) -> bool:
    is_in, not_in = known_holdouts(record)
    evaluated = evaluate_holdouts(evaluation, feature.id, feature.holdouts, is_in + not_in)
    evaluation.impressions += evaluated.impressions
    if not evaluated.matched:
        evaluation.not_in = evaluated.not_matched
        return False
    write_record(evaluation, feature.key, is_in=evaluated.matched, not_in=evaluated.not_matched)
    decision.reason = "holdout"
    return True


def _pass_rollout(evaluation: Evaluation, decision: Decision, feature: Feature) -> RuleMatch | None:
    """Take the first rollout whose segment the user is in; traffic is checked for that one only."""
    for rule in feature.rollouts:
        if passes(evaluation, feature, rule, {}):
            evaluation.rollouts_passed += (feature.key,)
            if not in_traffic(evaluation, rule):
                decision.reason = "out of traffic"
                return None
            decision.rollout = rule.match
            _show(evaluation, decision, rule.variations[0], "rollout")
            return decision.rollout
    return None


def _pass_experiment(
    evaluation: Evaluation, decision: Decision, feature: Feature, shown: RuleMatch | None
) -> RuleMatch | None:
    """Take the first experiment that the user passes. Return the rollout that a debug message names."""
    winners: Winners = {}
    for rule in feature.experiments:
        if rule.kind is AB and (rule.is_forced or evaluation.context.variation_targeting_variables is None):
            variation = forced_variation(evaluation, rule)
            if variation is not None:
                decision.experiment = variation.match
                _show(evaluation, decision, variation, "whitelisted")
                return shown
        if passes(evaluation, feature, rule, winners):
            variation = _bucketed_variation(evaluation, rule)
            if variation is None:
                _note_miss(decision, "out of traffic")
                return shown
            decision.experiment = rule.match or variation.match
            _show(evaluation, decision, variation, "experiment")
            return decision.rollout
    if winners:
        _note_miss(decision, "lost group")
    return shown


def _note_miss(decision: Decision, reason: str) -> None:
    """Note why no experiment was shown, unless a rollout is."""
    if decision.variation is None:
        decision.reason = reason


def _bucketed_variation(evaluation: Evaluation, rule: Rule) -> Variation | None:
    if not in_traffic(evaluation, rule):
        return None
    return choose_variation(evaluation, rule) if rule.kind is AB else rule.variations[0]


def _show(evaluation: Evaluation, decision: Decision, variation: Variation, reason: str) -> None:
    decision.variation = variation
    decision.reason = reason
    if decision.vwo_user_ids is None:
        evaluation.impressions.append(variation.impression)
    else:
        _append_impression(evaluation, decision, variation.impression)


def _append_impression(evaluation: Evaluation, decision: Decision, impression: Impression) -> None:
    if decision.vwo_user_ids is not None and evaluation.vwo_user_id is not UNSET:
        decision.vwo_user_ids[len(evaluation.impressions)] = evaluation.vwo_user_id
    evaluation.impressions.append(impression)


# --- Messages ---


def _debug_message(feature_key: str, rollout: RuleMatch | None, experiment: RuleMatch | None) -> str:
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


def _trace_record(evaluation: Evaluation, key: str, stored: str, variation: Variation | None) -> None:
    if evaluation.trace is not None:
        evaluation.trace.add(
            "stored", key=key, result=f"{stored}{'' if variation else ' is no longer in the settings'}"
        )
