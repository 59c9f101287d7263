"""The experiments of all environments of a worker, for its problems and metrics."""

from collections.abc import Mapping
from itertools import islice

from tornado_gateway.process.environments.serving import Serving
from tornado_gateway.telemetry.problems import Problem
from tornado_gateway.telemetry.prometheus import ExperimentFigures

MOST_LABELLED = 500  # features of an environment


def mismatches(serving: Serving) -> list[Problem]:
    """Return a problem for each experiment with a sample ratio mismatch."""
    return [
        Problem(
            "sample-ratio",
            sentence,
            environment=one.config.name if serving.is_from_file else None,
            subject=sentence.partition(":")[0],  # the experiment and its feature; the shares vary
        )
        for one in serving.all
        for sentence in one.environment.experiments.mismatches
    ]


def experiment_figures(serving: Serving, *, by_feature: bool) -> Mapping[str, ExperimentFigures]:
    """Return the numbers of each environment for the metrics, by its name; "" without ENVIRONMENTS_FILE."""
    figures = {}
    for one in serving.all:
        experiments = one.environment.experiments
        usage = dict(islice(experiments.usage().items(), MOST_LABELLED)) if by_feature else {}
        decisions = {key: feature["decisions"] for key, feature in usage.items()}
        exposures = {key: feature["exposures"] for key, feature in usage.items()}
        name = one.config.name if serving.is_from_file else ""
        figures[name] = ExperimentFigures(len(experiments.mismatches), decisions, exposures)
    return figures
