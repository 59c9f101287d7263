"""Log lines about problems that exist at the start and last: each with its remedy, written by one worker for all."""

import logging

from tornado_gateway import logs
from tornado_gateway.telemetry.problems import REMEDIES, Problem


def report(logger: logging.Logger, problem: Problem, seconds: float) -> None:
    """Log the problem with its remedy, unless another worker did within these seconds."""
    once = logs.once(f"{problem.code} {problem.file}", seconds, is_of_instance=True)
    logger.error("problem %s: %s. %s", problem.code, problem.message.rstrip("."), REMEDIES[problem.code], extra=once)
