"""The credentials that clients need: CLIENT_AUTH, CLIENT_TOKENS and TOKENS_FILE as parts of a worker."""

import logging
from collections.abc import Callable
from pathlib import Path

from tornado_gateway.api.router import Protect
from tornado_gateway.api.routes import Route
from tornado_gateway.config import Config, read_tokens, unknown_environments
from tornado_gateway.config.environments import DEFAULT_NAME
from tornado_gateway.environments.client_tokens import ClientAuth, ClientToken, ClientTokens, Tickets, digest_of
from tornado_gateway.environments.registry import Environments
from tornado_gateway.errors import ConfigError
from tornado_gateway.http.messages import Handler, Request
from tornado_gateway.logs import once
from tornado_gateway.tasks import FileWatch, Periodic
from tornado_gateway.telemetry.attempts import Attempts

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0


class TokenFile:
    """Keeps `tokens` like the options and TOKENS_FILE, which is read again when it changes."""

    def __init__(self, config: Config, environments: Environments) -> None:
        self._environments = environments
        self.tokens = ClientTokens()
        self._from_options = [ClientToken("CLIENT_TOKENS", digest_of(t.encode())) for t in config.client_tokens]
        self._path = config.tokens_file
        self._has_one_environment = config.environments_file is None
        self._watch = None if self._path is None else FileWatch(self._path)
        self._timer = Periodic(self.check, CHECK_SECONDS, jitter=0.2)
        self._use(self._path)

    def start(self) -> None:
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()

    def check(self) -> None:
        """Read the file if it has changed. With a mistake in it, the tokens stay as they are."""
        if self._watch is None or not self._watch.has_changed():
            return
        try:
            self._use(self._path)
        except ConfigError as error:
            problems = "; ".join(error.problems)
            logger.error("TOKENS_FILE was rejected, the tokens remain as they were: %s", problems, extra=once(problems))
        else:
            logger.info("TOKENS_FILE was read again")

    def _use(self, path: Path | None) -> None:
        rows = () if path is None else read_tokens(path)
        names = [DEFAULT_NAME] if self._has_one_environment else [one.access.name for one in self._environments.all]
        problems = list(unknown_environments(rows, names))
        if problems and self._has_one_environment:
            raise ConfigError(problems)
        # With ENVIRONMENTS_FILE a token may be added before its environment, and stay after it.
        for problem in problems:
            extra = once(problem)
            logger.warning(
                "a token names an environment that is not served, requests with it get 403: %s", problem, extra=extra
            )
        self.tokens.replace([*self._from_options, *(ClientToken(*row) for row in rows)])


class Credentials:
    """The credentials of clients in one worker. `protect` and `tickets` are None if none are required."""

    def __init__(
        self,
        config: Config,
        environments: Environments,
        address: Callable[[Request], str],
        attempts: Attempts,
        row: int,
    ) -> None:
        self._file = TokenFile(config, environments)
        has_key = environments.has_key if config.sdk_key_auth else None
        self._auth = ClientAuth(self._file.tokens, has_key, address, attempts, row)
        self._only_decisions = config.client_auth == "decisions"
        self.protect: Protect | None = None if config.client_auth == "off" else self._protect
        self.tickets = None if self.protect is None else Tickets(self._file.tokens, self._auth)
        self.start, self.stop = self._file.start, self._file.stop

    def _protect(self, route: Route, handler: Handler) -> Handler:
        if route.scope is None or (self._only_decisions and not route.is_decision):
            return handler
        return self._auth.guarded(handler, route.scope, route.is_lookup)
