"""The gateway that runs with this configuration, as an operator's command on the same machine sees it."""

import http.client
import ssl
from typing import Any
from urllib.parse import quote

import orjson

from tornado_gateway.config import Config
from tornado_gateway.console import admin_token
from tornado_gateway.console.admin_token import AdminTokenError
from tornado_gateway.errors import GatewayError

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  address to connect to for a wildcard HOST


class ClientError(GatewayError):
    """The running gateway did not answer as it should. `status` is that of its answer, 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Send requests to the gateway at HOST and PORT, below /admin with the admin token."""

    def __init__(self, config: Config, timeout_seconds: float = 5.0) -> None:
        self._host = _EVERYWHERE.get(config.host, config.host)
        self._port = config.port
        self._config = config
        self._is_https = config.tls_cert_path is not None
        self._timeout_seconds = timeout_seconds
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"{'https' if self._is_https else 'http'}://{shown}:{self._port}"

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of the answer to a GET, or to a POST of `body`. Raises ClientError."""
        headers = self._authorization() if path.startswith("/admin/") else {}
        connection = self._connection()
        try:
            if body is None:
                connection.request("GET", path, headers=headers)
            else:
                headers["Content-Type"] = "application/json"
                connection.request("POST", path, orjson.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
            return response.status, orjson.loads(data) if data else None
        except orjson.JSONDecodeError as error:
            raise ClientError(f"{self.url} answers, but not as a gateway", response.status) from error
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"{self.url} does not answer: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON of a 200; everything else raises ClientError."""
        return self._expect_200(path, *self.ask(path))

    def post(self, path: str, body: Any) -> Any:
        return self._expect_200(path, *self.ask(path, body))

    def _expect_200(self, path: str, status: int, answer: Any) -> Any:
        if status == 200:
            return answer
        said = answer.get("error", "") if isinstance(answer, dict) else ""
        hint = f"; {self._hint()}" if status == 401 else ""
        raise ClientError(f"{self.url}{path} answered {status}: {said}{hint}", status)

    def console_link(self) -> str:
        """Return a link that signs in to the console. Browsers do not send the part behind # to any server."""
        token = self._token()
        if token is None:
            file = admin_token.path_in(self._config.data_dir)
            raise ClientError(f"{file} does not exist: start the gateway first, or set its ADMIN_TOKEN or DATA_DIR")
        return f"{self.url}/console#token={quote(token, safe='')}"

    def _authorization(self) -> dict[str, str]:
        token = self._token()
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def _token(self) -> str | None:
        """Return ADMIN_TOKEN or the token in DATA_DIR, None if there is neither."""
        if self._config.admin_token is not None:
            return self._config.admin_token
        try:
            return admin_token.read(self._config.data_dir)
        except FileNotFoundError:
            return None
        except AdminTokenError as error:
            raise ClientError(str(error)) from error

    def _hint(self) -> str:
        if self._config.admin_token is not None:
            return "ADMIN_TOKEN is not the one of this gateway"
        file = admin_token.path_in(self._config.data_dir)
        return f"set ADMIN_TOKEN or DATA_DIR to that of the gateway (ADMIN_TOKEN is not set, {file} was tried)"

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_https:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_seconds)
        # The certificate is made out to the public name, and this is our own machine.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_seconds, context=context)
