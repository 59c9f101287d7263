"""The state of an experiment in numbers and words: for the console, /admin/experiments, problems and metrics."""

from collections.abc import Sequence
from typing import Any

from tornado_gateway.experiments.exposures import Audience
from tornado_gateway.experiments.ratio import ALARM_P, LEAST_VISITORS, chi_square_p, is_mismatch, sequential_p
from tornado_gateway.experiments.sample import VisitorSample

MISMATCH = "mismatch"
AS_CONFIGURED = "as configured"
TOO_FEW = "too few visitors"
LONGEST_NAME = 300  # characters of a key or a name
MOST_SHARES = 10  # in a sentence

Json = dict[str, Any]


def report_of(audience: Audience) -> Json:
    """Return the report of one experiment. The shares are those of the sampled visitors, in percent."""
    experiment, sample = audience.experiment, audience.sample or VisitorSample()
    counts = _counts(audience)
    drawn, shares = _tested(audience, counts)
    total = sum(counts)
    return {
        "campaign": {
            "id": experiment.campaign_id,
            "key": _short(experiment.key),
            "name": _short(experiment.name),
        },
        "feature": _short(experiment.feature_key),
        "traffic": experiment.traffic,
        "visitors": sample.visitors,
        "sampled": total,
        "switched": sample.switched,
        "variations": [
            {
                "id": one.id,
                "name": _short(one.name),
                "weight": round(100 * one.share, 2),
                "share": round(100 * count / total, 2) if total else None,
                "sampled": count,
            }
            for count, one in zip(counts, experiment.variations, strict=True)
        ],
        "p": chi_square_p(drawn, shares),
        "sequential_p": sequential_p(drawn, shares),
        "verdict": _verdict(drawn, shares),
    }


def sentence_of(report: Json) -> str:
    """Return a mismatch in words."""
    variations = report["variations"][:MOST_SHARES]
    more = " / ..." if len(report["variations"]) > MOST_SHARES else ""
    shares = " / ".join(f"{one['share']:.1f} %" for one in variations) + more
    weights = " / ".join(f"{one['weight']:.1f} %" for one in variations) + more
    return (
        f"Experiment {report['campaign']['key']:.100} of feature {report['feature']:.100}: the shares of the variations"
        f" are {shares} instead of {weights} ({report['visitors']:,} visitors, p < {_bound(report['sequential_p'])})"
    )


def is_mismatched(audience: Audience) -> bool:
    return audience.sample is not None and is_mismatch(*_tested(audience, _counts(audience)))


def _counts(audience: Audience) -> list[int]:
    """Return the number of sampled visitors of each variation."""
    sample = audience.sample
    codes = range(1, len(audience.experiment.variations) + 1)
    return [0 if sample is None else sample.count(code) for code in codes]


def _tested(audience: Audience, counts: Sequence[int]) -> tuple[list[int], list[float]]:
    """Return counts and shares of the variations that visitors are assigned to."""
    shares = [variation.share for variation in audience.experiment.variations]
    places = [place for place, share in enumerate(shares) if share]
    return [counts[place] for place in places], [shares[place] for place in places]


def _verdict(counts: Sequence[int], shares: Sequence[float]) -> str:
    if is_mismatch(counts, shares):
        return MISMATCH
    return AS_CONFIGURED if sum(counts) >= LEAST_VISITORS else TOO_FEW


def _bound(p: float) -> str:
    """Return a round number above a p that is below ALARM_P."""
    bounds = (f"1e-{exponent}" for exponent in (100, 50, 20, 10, 6, 4))
    return next((bound for bound in bounds if p < float(bound)), str(ALARM_P))


def _short(text: object) -> str:
    return str(text)[:LONGEST_NAME]
