"""The gateway that runs with this configuration, as an operator's command on the same machine sees it."""

import http.client
import ssl
from typing import Any

import orjson

from .config import Config
from .errors import GatewayError

__all__ = ["Client", "ClientError"]

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where to connect to what listens everywhere


class ClientError(GatewayError):
    """The running gateway did not answer as it should. `status` is that of its answer, 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Asks the gateway at HOST and PORT, with ADMIN_TOKEN if there is one."""

    def __init__(self, config: Config, timeout_seconds: float = 5.0) -> None:
        self._host = _EVERYWHERE.get(config.host, config.host)
        self._port = config.port
        self._token = config.admin_token
        self._is_https = config.tls_cert_path is not None
        self._timeout_seconds = timeout_seconds
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"{'https' if self._is_https else 'http'}://{shown}:{self._port}"

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of the answer to a GET, or to a POST of `body`. Raises ClientError."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
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
        hint = "; set ADMIN_TOKEN to that of the gateway" if status in (401, 403) else ""
        raise ClientError(f"{self.url}{path} answered {status}: {said}{hint}", status)

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_https:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_seconds)
        # The certificate is made out to the public name, and this is our own machine.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_seconds, context=context)
