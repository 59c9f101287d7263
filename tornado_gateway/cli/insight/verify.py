"""The command `verify`: compare decisions with expected ones, for continuous integration."""

import argparse
import sys
from collections.abc import Callable, Collection, Sequence

from tornado_gateway import core
from tornado_gateway.cli.insight.database import evaluator_with
from tornado_gateway.cli.insight.remote import Remote, RemoteError, UrlError
from tornado_gateway.cli.output import bullets, file_problem, paint
from tornado_gateway.environments.evaluation import Inputs, with_address
from tornado_gateway.insight.cases import MOST_BYTES, Case, CasesError, read_cases
from tornado_gateway.insight.verification import Actual, Verified, differences, junit
from tornado_gateway.settings.compilation import parse
from tornado_gateway.settings.documents import read_document

PASSED, FAILED, UNUSABLE, UNREACHABLE = range(4)  # exit codes; UNUSABLE as for invalid options: a file or the URL

Decide = Callable[[Case], Actual]
Explain = Callable[[Case], list[str]]


def verify(arguments: argparse.Namespace) -> int:
    """Return 0 if all cases pass, FAILED if one fails, and other codes if the cases could not be verified."""
    try:
        results = _results(arguments)
    except (CasesError, core.SettingsError, OSError, RemoteError) as error:
        print(_reason(error, arguments), file=sys.stderr)
        return UNREACHABLE if isinstance(error, RemoteError) and not isinstance(error, UrlError) else UNUSABLE
    outcome, written = _printed(results), _junit_written(results, arguments)
    return outcome or written


def _results(arguments: argparse.Namespace) -> list[Verified]:
    features, decide, explain = _source(arguments)
    with arguments.expect.open("rb") as file:
        cases = read_cases(file.read(MOST_BYTES + 1), features)
    return [_verified(case, decide, explain) for case in cases]


def _reason(error: Exception, arguments: argparse.Namespace) -> str:
    if isinstance(error, CasesError):
        return f"{arguments.expect} cannot be used:\n{bullets(error.problems)}"
    if isinstance(error, core.SettingsError):
        return f"Invalid settings document:\n{bullets(error.problems)}"
    return file_problem(error) if isinstance(error, OSError) else str(error)


def _junit_written(results: Sequence[Verified], arguments: argparse.Namespace) -> int:
    """Write the JUnit file, if one is wanted. Return the exit code."""
    try:
        if arguments.junit is not None:
            arguments.junit.write_text(junit(results, str(arguments.expect)), encoding="utf-8")
    except OSError as error:
        print(f"--junit: {file_problem(error)}", file=sys.stderr)
        return UNUSABLE
    return 0


def _source(arguments: argparse.Namespace) -> tuple[Collection[str], Decide, Explain]:
    if arguments.url is None:
        return _local(arguments)
    remote = Remote(arguments.url, arguments.token, arguments.admin_token)
    return remote.features(), remote.decide, remote.explain


def _local(arguments: argparse.Namespace) -> tuple[Collection[str], Decide, Explain]:
    settings = core.compile_settings(parse(read_document(arguments.settings), core.never_yield))
    evaluator = evaluator_with(arguments.maxmind_db_path)

    def decide(case: Case) -> Actual:
        return _actual(evaluator.decide_from(settings, case.feature, Inputs(_context(case))))

    def explain(case: Case) -> list[str]:
        trace = core.Trace()
        traced = core.with_tracing(settings)
        evaluator.decide_from(traced, case.feature, Inputs(_context(case)), trace)
        return core.explain_lines(trace)

    return settings.features.keys(), decide, explain


def _context(case: Case) -> core.Context:
    return with_address(
        core.Context(
            user_id=case.user,
            custom_variables=case.variables,
            variation_targeting_variables=case.targeting,
            user_agent=case.user_agent,
            ip_address=case.ip,
        )
    )


def _actual(decision: core.Decision) -> Actual:
    variation = decision.variation
    shown = None if variation is None else {"id": variation.id, "name": variation.name}
    return Actual(decision.enabled, shown, {item["key"]: item["value"] for item in decision.variables})


def _verified(case: Case, decide: Decide, explain: Explain) -> Verified:
    found = differences(case, decide(case))
    return Verified(case, found, explain(case) if found else ())


def _printed(results: list[Verified]) -> int:
    failed = [result for result in results if result.differences]
    for result in failed:
        print(f"{paint('FAILED', 'red')} {result.case.place}: {result.case.title}")
        print(*[f"  {line}" for line in result.differences], sep="\n")
        print(*[f"    {line}" for line in result.explanation], sep="\n")
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return FAILED if failed else PASSED
