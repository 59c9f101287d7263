"""Decisions of a gateway at any URL, which records no events for them."""

import http.client
import ssl
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


class Remote:
    """Requests to a gateway. `token` is a client token; `admin_token` is for explanations."""

    def __init__(
        self, url: str, token: str | None = None, admin_token: str | None = None, timeout_seconds: float = 10.0
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RemoteError(f"--url: expected http://HOST:PORT or https://HOST, got {url}")
        self._url = url.rstrip("/")
        self._prefix = parts.path.rstrip("/")
        self._token = token
        self._admin_token = admin_token
        try:
            self._connection = _connection(parts.scheme, parts.hostname, parts.port, timeout_seconds)
        except ValueError as error:
            raise RemoteError(f"--url: {error}") from error

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

    def _flags(self, fields: dict[str, Any]) -> dict[str, Any]:
        flags: dict[str, Any] = self._post("/server-side/getFlags", fields, self._token)["flags"]
        return flags

    def _post(self, path: str, fields: dict[str, Any], token: str | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            self._connection.request("POST", self._prefix + path, orjson.dumps(fields), headers)
            response = self._connection.getresponse()
            document = orjson.loads(response.read(MOST_BYTES))
        except orjson.JSONDecodeError as error:
            raise RemoteError(f"{self._url} is not a gateway: its response is not JSON") from error
        except (OSError, http.client.HTTPException) as error:
            raise RemoteError(f"no response from {self._url}: {error or type(error).__name__}") from error
        if response.status != 200:
            reason = document.get("error", "") if isinstance(document, dict) else ""
            raise RemoteError(f"{self._url}{path} returned {response.status}: {reason}")
        return document


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
