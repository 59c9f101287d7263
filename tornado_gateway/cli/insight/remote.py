"""Decisions of a gateway at any URL, which records no events for them."""

import http.client
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import orjson

from tornado_gateway.errors import GatewayError
from tornado_gateway.insight.cases import Case
from tornado_gateway.insight.verification import Actual

NOT_EXPLAINED = "not explained: set ADMIN_TOKEN to that of the gateway"
MOST_BYTES = 64 * 1024 * 1024  # of a response


class RemoteError(GatewayError):
    """The gateway did not respond as expected."""


class UrlError(RemoteError):
    """The URL is invalid."""


class Remote:
    """Requests to a gateway. `token` is a client token; `admin_token` is for explanations."""

    def __init__(
        self, url: str, token: str | None = None, admin_token: str | None = None, timeout_seconds: float = 10.0
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._admin_token = admin_token
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"expected http://HOST:PORT or https://HOST, got {url}")
            self._connection = _connection(parts.scheme, parts.hostname, parts.port, timeout_seconds)
        except ValueError as error:
            raise UrlError(f"--url: {error}") from error
        self._prefix = parts.path.rstrip("/")

    def features(self) -> list[str]:
        """Return the keys of all features."""
        return list(self._flags({"userId": "verify"}))

    def decide(self, case: Case) -> Actual:
        """Decide without impressions: getFlags records none."""
        fields = {**_visitor(case), "featureKeys": [case.feature], "details": True}
        flag = self._flags(fields)[case.feature]
        name = flag["details"].get("variation")
        variation = {"id": flag["details"].get("variationId"), "name": name} if flag["isEnabled"] else None
        return Actual(flag["isEnabled"], variation, {item["key"]: item["value"] for item in flag["variables"]})

    def explain(self, case: Case) -> list[str]:
        if self._admin_token is None:
            return [NOT_EXPLAINED]
        fields = {**_visitor(case), "featureKey": case.feature}
        lines: list[str] = self._post("/admin/explain", fields, self._admin_token)["decisions"][0]["lines"]
        return lines

    def simulate(self, fields: dict[str, Any], progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Return the result of POST /admin/simulate, which reports its progress in lines."""
        response = self._respond("/admin/simulate", fields, self._admin_token)
        try:
            for line in response:
                document = orjson.loads(line)
                if "result" in document:
                    result: dict[str, Any] = document["result"]
                    return result
                progress(document["progress"]["done"], document["progress"]["of"])
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RemoteError(f"the response of {self._url} is incomplete: {_cause(error)}") from error
        raise RemoteError(f"the response of {self._url} is incomplete")

    def _flags(self, fields: dict[str, Any]) -> dict[str, Any]:
        flags: dict[str, Any] = self._post("/server-side/getFlags", fields, self._token)["flags"]
        return flags

    def _post(self, path: str, fields: dict[str, Any], token: str | None) -> Any:
        response = self._respond(path, fields, token)
        try:
            return orjson.loads(response.read(MOST_BYTES))
        except orjson.JSONDecodeError as error:
            raise RemoteError(f"{self._url} is not a gateway: its response is not JSON") from error
        except (OSError, http.client.HTTPException) as error:
            raise RemoteError(f"no response from {self._url}: {_cause(error)}") from error

    def _respond(self, path: str, fields: dict[str, Any], token: str | None) -> http.client.HTTPResponse:
        """Return the response to a POST, whose body is not read yet. Raise RemoteError if the status is not 200."""
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            self._connection.request("POST", self._prefix + path, orjson.dumps(fields), headers)
            response = self._connection.getresponse()
            if response.status == 200:
                return response
            reason = _reason(response.read(MOST_BYTES))
        except (OSError, http.client.HTTPException) as error:
            raise RemoteError(f"no response from {self._url}: {_cause(error)}") from error
        except ValueError as error:  # a token or a path with characters that a request cannot have
            raise RemoteError(f"the request to {self._url} cannot be made: a token or the URL is invalid") from error
        raise RemoteError(f"{self._url}{path} returned {response.status}{reason}")


def _cause(error: Exception) -> str:
    """Return an error in words, without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _reason(body: bytes) -> str:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    return f": {document['error']}" if isinstance(document, dict) and "error" in document else ""


def _connection(scheme: str, host: str, port: int | None, seconds: float) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=seconds, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=seconds)


def _visitor(case: Case) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "userId": case.user,
        "customVariables": case.variables,
        "variationTargetingVariables": case.targeting,
    }
    optional = {"userAgent": case.user_agent, "ipAddress": case.ip}
    return fields | {name: value for name, value in optional.items() if value is not None}
