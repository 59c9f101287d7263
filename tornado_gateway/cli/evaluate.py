"""The command `evaluate`: a decision from a settings document, without a running gateway."""

import argparse

import orjson

from tornado_gateway import core
from tornado_gateway.cli.configuration.check import naming
from tornado_gateway.cli.insight.database import evaluator_with
from tornado_gateway.cli.output import print_json
from tornado_gateway.environments.evaluation import Inputs, with_address
from tornado_gateway.settings.compilation import parse
from tornado_gateway.settings.documents import read_document


def evaluate(arguments: argparse.Namespace) -> int:
    with naming(arguments.settings):
        document = parse(read_document(arguments.settings), core.never_yield)
        settings = core.compile_settings(document, traced=arguments.explain)
    is_used = bool(arguments.ip) and _needs_location(settings.features.get(arguments.feature))
    evaluator = evaluator_with(arguments.maxmind_db_path, is_used=is_used)
    trace = core.Trace() if arguments.explain else None
    decision = evaluator.decide_from(settings, arguments.feature, Inputs(_context(arguments)), trace)
    explanation = core.explain_lines(trace) if trace is not None else None
    if arguments.json:
        print_json({"decision": orjson.loads(decision.body), "explanation": explanation})
        return 0
    print(decision.body.decode())
    if explanation is not None:
        print(*explanation, sep="\n")
    return 0


def _context(arguments: argparse.Namespace) -> core.Context:
    context = core.Context(
        user_id=arguments.user,
        custom_variables=arguments.variables,
        variation_targeting_variables=arguments.targeting,
        user_agent=arguments.user_agent,
        ip_address=arguments.ip,
    )
    return with_address(context)


def _needs_location(feature: core.Feature | None) -> bool:
    return feature is not None and feature.needs_location
