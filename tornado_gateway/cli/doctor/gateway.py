"""The problems that the running gateway reports in /status. The doctor has no second opinion about these."""

from typing import Any, NamedTuple

from tornado_gateway.cli.client import Client, ClientError
from tornado_gateway.cli.doctor.remedies import FAIL, OK, WARN, Finding
from tornado_gateway.config import Config
from tornado_gateway.telemetry.problems import CRITICAL

# Codes of conditions that the gateway judges from its own state; checks of files and servers look further.
JUDGED_BY_GATEWAY = frozenset({"events-waiting", "events-dead", "events-stuck", "damaged-files"})


class Reported(NamedTuple):
    """The verdict of a running gateway, and its problems."""

    verdict: str
    problems: list[dict[str, Any]]
    url: str

    def findings(self) -> list[Finding]:
        if not self.problems:
            return [Finding("gateway", OK, OK, f"{self.url} reports no problem")]
        return [_finding(problem) for problem in self.problems]

    def settle(self, finding: Finding) -> Finding | None:
        """Return the finding as far as the gateway has not judged the same. None: its problem is in the report."""
        if finding.state != OK and finding.code in {problem["code"] for problem in self.problems}:
            return None
        return finding._replace(state=OK, code=OK, own_remedy=None) if finding.code in JUDGED_BY_GATEWAY else finding


def ask_gateway(config: Config) -> Reported | None:
    """Return what the gateway reports; None if none runs at HOST and PORT."""
    client = Client(config)
    try:
        status, answer = client.request("/status")
    except ClientError:
        return None
    if status != 200 or not isinstance(answer, dict) or not isinstance(answer.get("verdict"), str):
        return None
    return Reported(answer["verdict"], list(answer["problems"]), client.url)


def _finding(problem: dict[str, Any]) -> Finding:
    name = problem["environment"]
    message = problem["message"] if name is None else f"{name}: {problem['message']}"
    state = FAIL if problem["severity"] == CRITICAL else WARN
    return Finding("gateway", state, problem["code"], message, problem.get("remedy"))
