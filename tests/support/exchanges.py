"""One request to a gateway with any headers, and its whole response."""

import http.client

import orjson

JSON = {"Content-Type": "application/json"}


def exchange(gateway, method, path, body=None, **headers):
    """Status, headers by lower-case name, parsed body. `Content_Type` in `headers` is Content-Type."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        encoded = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        connection.request(method, path, encoded, (JSON if body is not None else {}) | sent)
        response = connection.getresponse()
        data = response.read()
        got = {name.lower(): value for name, value in response.getheaders()}
        is_json = got.get("content-type", "").startswith("application/json")
        return response.status, got, orjson.loads(data) if is_json and data else data
    finally:
        connection.close()
