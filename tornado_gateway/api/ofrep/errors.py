"""Errors in the shape of OFREP, always JSON objects (docs/openfeature.md)."""

import re
from urllib.parse import unquote_to_bytes

from tornado_gateway.api.ofrep.outcomes import encoded
from tornado_gateway.errors import RequestError
from tornado_gateway.http.messages import Response

RETRY_SECONDS = b"1"  # clients read whole seconds only
GENERAL, PARSE_ERROR, INVALID_CONTEXT = "GENERAL", "PARSE_ERROR", "INVALID_CONTEXT"
TARGETING_KEY_MISSING, FLAG_NOT_FOUND = "TARGETING_KEY_MISSING", "FLAG_NOT_FOUND"
ROOT = b"/ofrep/v1/evaluate/flags/"
_ROOT = re.compile(b"/+ofrep/+v1/+evaluate/+flags/+")  # some clients double slashes


class EvaluationError(RequestError):
    """A request that gets an OFREP error. `ofrep_code` is one of the protocol's."""

    def __init__(self, status: int, ofrep_code: str, message: str) -> None:
        super().__init__(status, message)
        self.ofrep_code = ofrep_code


def ofrep_error(path: bytes, error: RequestError) -> Response:
    """Return the response to a request to `path` that cannot be served."""
    code = error.ofrep_code if isinstance(error, EvaluationError) else GENERAL
    key = flag_key(path)
    body = {"errorCode": code, "errorDetails": str(error)}
    headers = [*error.headers, *([(b"Retry-After", RETRY_SECONDS)] if error.status == 503 else [])]
    return Response(error.status, encoded({"key": key, **body} if key else body), headers=headers)


def flag_key(path: bytes) -> str:
    """Return the flag key in a path: everything after the root, decoded once. A plus is a plus."""
    if path.startswith(ROOT):  # nearly all do, and a search costs more
        key = path[len(ROOT) :].lstrip(b"/")
    else:
        root = _ROOT.search(path)
        key = b"" if root is None else path[root.end() :]
    is_encoded = key.find(b"%") >= 0  # `in` would first try a number, and raise and drop an error: 1,800 instructions
    return (unquote_to_bytes(key) if is_encoded else key).decode("utf-8", "replace")
