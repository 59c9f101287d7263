"""The credentials that clients need: CLIENT_AUTH, CLIENT_TOKENS and TOKENS_FILE as parts of a worker."""

import logging
from pathlib import Path

from tornado_gateway.api.router import Protect
from tornado_gateway.api.routes import Route
from tornado_gateway.config import Config, read_tokens
from tornado_gateway.environments.client_tokens import ClientAuth, ClientToken, ClientTokens, digest_of
from tornado_gateway.errors import ConfigError
from tornado_gateway.http.messages import Handler
from tornado_gateway.tasks import FileWatch, Periodic

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0


class TokenFile:
    """Keeps `tokens` like the options and TOKENS_FILE, which is read again when it changes."""

    def __init__(self, config: Config) -> None:
        self.tokens = ClientTokens()
        self._from_options = [ClientToken("CLIENT_TOKENS", digest_of(t.encode())) for t in config.client_tokens]
        self._path = config.tokens_file
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
            logger.error("TOKENS_FILE was rejected, the tokens remain as they were: %s", "; ".join(error.problems))
        else:
            logger.info("TOKENS_FILE was read again")

    def _use(self, path: Path | None) -> None:
        rows = () if path is None else read_tokens(path)
        self.tokens.replace([*self._from_options, *(ClientToken(*row) for row in rows)])


def protection(config: Config, auth: ClientAuth) -> Protect | None:
    """Return the check of the routes that CLIENT_AUTH names, None if there are none."""
    if config.client_auth == "off":
        return None
    only_decisions = config.client_auth == "decisions"

    def protect(route: Route, handler: Handler) -> Handler:
        if route.scope is None or (only_decisions and not route.is_decision):
            return handler
        return auth.guarded(handler, route.scope)

    return protect
