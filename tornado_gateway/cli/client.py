"""HTTP client of the commands, for the gateway that runs with the same configuration on this machine."""

import http.client
import ssl
from typing import Any

import orjson

from tornado_gateway.config import Config
from tornado_gateway.console import admin_token
from tornado_gateway.console.admin_token import AdminTokenError
from tornado_gateway.errors import GatewayError


class ClientError(GatewayError):
    """The running gateway did not respond as expected. `status` is that of its response, or 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Send requests to the gateway at HOST and PORT, below /admin with the admin token."""

    def __init__(self, config: Config, timeout_seconds: float = 5.0) -> None:
        self._host = config.local_host
        self._port = config.port
        self._config = config
        self._is_https = config.tls_cert_path is not None
        self._timeout_seconds = timeout_seconds
        self.url = config.local_url

    def request(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a GET, or a POST of `body`. Return status and JSON of the response. Raise ClientError."""
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
            raise ClientError(f"{self.url} is not a gateway: its response is not JSON", response.status) from error
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"no response from {self.url}: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """Return the JSON of a response with status 200. Raise ClientError for any other one."""
        return self._expect_200(path, *self.request(path))

    def post(self, path: str, body: Any) -> Any:
        return self._expect_200(path, *self.request(path, body))

    def _expect_200(self, path: str, status: int, document: Any) -> Any:
        if status == 200:
            return document
        reason = document.get("error", "") if isinstance(document, dict) else ""
        hint = f". {self._hint()}" if status == 401 else ""
        raise ClientError(f"{self.url}{path} returned {status}: {reason}{hint}", status)

    def console_link(self) -> str:
        """Return a link that signs in to the console."""
        token = self._token()
        if token is None:
            file = admin_token.path_in(self._config.data_dir)
            raise ClientError(f"{file} does not exist. Start the gateway first, or set its ADMIN_TOKEN or DATA_DIR.")
        return admin_token.sign_in_link(self.url, token)

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
        return f"Set ADMIN_TOKEN or DATA_DIR to that of the gateway (ADMIN_TOKEN is not set, {file} was tried)"

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_https:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_seconds)
        # The certificate is for the public name, and the connection does not leave this machine.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_seconds, context=context)
