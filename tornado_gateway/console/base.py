"""The base class of all pages: JSON bodies, error responses and their log lines."""

import json
from collections.abc import Awaitable, Mapping
from types import TracebackType
from typing import Any, ClassVar

import orjson
from tornado.web import HTTPError, RequestHandler

from tornado_gateway.errors import RequestError, StoreError, default_code, reason_phrase
from tornado_gateway.http.messages import RETRY_SECONDS, Request, error_body
from tornado_gateway.http.request_ids import log_failure


class Page(RequestHandler):
    """A page that responds with JSON, errors included. HEAD is served wherever GET is."""

    METHODS: ClassVar[tuple[str, ...]] = ("GET",)

    def compute_etag(self) -> str | None:
        return None

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def write_json(self, body: Mapping[str, Any], status: int = 200) -> None:
        self.set_status(status)
        if status == 503:
            self.set_header("Retry-After", RETRY_SECONDS.decode())
        self.write(_encoded(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 405:
            self.set_header("Allow", ", ".join(self.allowed()))
        self._finish_with_error(self._message(status_code, kwargs.get("exc_info")), default_code(status_code))

    @classmethod
    def allowed(cls) -> list[str]:
        """Return METHODS and HEAD."""
        return [allowed for method in cls.METHODS for allowed in (("GET", "HEAD") if method == "GET" else (method,))]

    def options(self) -> None:
        self.set_status(204)
        self.clear_header("Content-Type")
        self.set_header("Allow", ", ".join([*self.allowed(), "OPTIONS"]))

    def head(self) -> Awaitable[None] | None:
        return self.get()

    def reject(self, error: RequestError) -> None:
        if error.status == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="operators"')
        for name, value in error.headers:
            self.set_header(name.decode(), value)
        self.set_status(error.status)
        self._finish_with_error(str(error), error.code)

    def reject_for_store(self, error: StoreError) -> None:
        """Respond to a request that needed the store."""
        self.reject(RequestError(error.status, str(error), code=error.code))

    def _finish_with_error(self, message: str, code: str) -> None:
        if self.get_status() == 503:
            self.set_header("Retry-After", RETRY_SECONDS.decode())
        self.finish(error_body(message, code))

    def log_exception(self, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Log the error as for data routes, with the id of the request."""
        if error is None or isinstance(error, HTTPError):
            super().log_exception(kind, error, traceback)
            return
        failed = self.request
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in failed.headers.get_all()]
        log_failure(Request((failed.method or "").encode(), failed.path.encode("latin-1"), b"", headers), error)

    def _message(self, status: int, raised: Any) -> str:
        error = raised[1] if raised else None
        if isinstance(error, HTTPError) and error.log_message:
            return error.log_message % error.args  # Tornado doubles the % of a message without arguments
        return reason_phrase(status, "error").lower()


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body, default=str, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:  # a segment nested more deeply than orjson allows
        return json.dumps(body, default=str).encode()
