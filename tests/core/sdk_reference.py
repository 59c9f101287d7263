"""The reference SDK as a co-process: one JSON case per line in, what it did per line out.

The SDK runs unmodified, cut off from the world at its edges: HTTP sessions are answered from here, the clock stands
still, timers never fire, nothing is printed. It is full of singletons, hence a process of its own. Start it as a script
with the interpreter that has `wingify-fme-python-sdk` installed; `Reference` below talks to it.

A case: {"settings": document, "op": "getFlag" | "trackEvent" | "setAttribute" | "init", "context": {...},
"featureKey" | "eventName" + "properties" | "attributes", "storage": records by key or null}. Settings are remembered
under "name", so that later cases may leave them out.
"""

import copy
import json
import subprocess
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

NOW_S = 1_700_000_000

PYTHON_NAMES = {
    "userAgent": "user_agent",
    "ipAddress": "ip_address",
    "customVariables": "custom_variables",
    "variationTargetingVariables": "variation_targeting_variables",
    "postSegmentationVariables": "post_segmentation_variables",
    "sessionId": "session_id",
    "useIdForWeb": "use_id_for_web",
}


class Reference:
    """The parent's end: `run` sends cases and yields their results in order."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the reference process has died"
        result: dict[str, Any] = json.loads(line)
        assert "crash" not in result, result["crash"]
        return result

    def run_all(self, cases: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        return (self.run(case) for case in cases)

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=20)


# --- the child's end ---------------------------------------------------------


class Response:
    """What the stubbed HTTP session answers."""

    status_code = 200
    headers = {"Content-Type": "application/json"}

    def __init__(self, body: Any) -> None:
        self.body = body
        self.text = json.dumps(body)

    def json(self) -> Any:
        return copy.deepcopy(self.body)


class Storage:
    """A storage connector that remembers what is written."""

    def __init__(self, records: dict[str, Any]) -> None:
        self.records = records
        self.writes: list[Any] = []

    def get(self, key: str, user_id: str) -> Any:
        return copy.deepcopy(self.records.get(key))

    def set(self, record: dict[str, Any]) -> None:
        self.writes.append(copy.deepcopy(record))
        self.records[record["featureKey"]] = copy.deepcopy(record)


class Child:
    """The SDK with its edges stubbed."""

    def __init__(self) -> None:
        import requests
        import wingify
        from wingify import wingify_builder, wingify_client
        from wingify.packages.logger.core import log_manager
        from wingify.packages.logger.transports import console_transport
        from wingify.packages.network_layer.client import network_client
        from wingify.packages.storage import storage
        from wingify.services import settings_manager
        from wingify.utils import function_util

        self.wingify, self.client_module, self.storage = wingify, wingify_client, storage.Storage
        self.settings_manager = settings_manager.SettingsManager
        self.posts: list[Any] = []
        self.document: Any = None
        self.failure: str | None = None
        self.clients: dict[str, Any] = {}
        clock = types.SimpleNamespace(time=lambda: float(NOW_S), sleep=lambda seconds: None)
        function_util.time = network_client.time = clock
        function_util.random = types.SimpleNamespace(random=lambda: 0.5)
        timer = types.SimpleNamespace(start=lambda: None, cancel=lambda: None)
        wingify_builder.threading = types.SimpleNamespace(Timer=lambda *args, **kwargs: timer)
        console_transport.ConsoleTransport.console_log = lambda transport, message: None
        requests.Session.get = lambda session, url, **kwargs: Response(self.document)
        requests.Session.post = self.post
        self.memoise_validation()
        self.watch_failures(log_manager.LogManager)

    def post(self, *args: Any, **kwargs: Any) -> Response:
        self.posts.append(copy.deepcopy(kwargs["json"]))
        return Response({})

    def memoise_validation(self) -> None:
        """The SDK checks the whole document at each call; once per document is enough here."""
        check = self.settings_manager.is_settings_valid
        known: dict[int, tuple[Any, bool]] = {}

        def is_valid(document: Any) -> bool:
            if id(document) not in known or known[id(document)][0] is not document:
                known[id(document)] = document, check(document)
            return known[id(document)][1]

        self.settings_manager.is_settings_valid = staticmethod(is_valid)

    def watch_failures(self, log_manager: Any) -> None:
        """Exceptions in the SDK end in an error log with this template."""
        log = log_manager.error_log

        def error_log(manager: Any, template: str, data: Any = None, *args: Any, **kwargs: Any) -> Any:
            if template == "EXECUTION_FAILED":
                self.failure = str((data or {}).get("err"))
            return log(manager, template, data or {}, *args, **kwargs)

        log_manager.error_log = error_log

    def client(self, name: str, document: Any) -> Any:
        if name in self.clients and document is None:
            client, manager = self.clients[name]
        else:
            self.document = document
            account = document.get("accountId", 1) if isinstance(document, dict) else 1
            key = document.get("sdkKey", "key") if isinstance(document, dict) else "key"
            self.storage.get_instance().attach_connector(None)
            self.client_module.WingifyClient._client_instance = None
            client = self.wingify.init({"sdk_key": key, "account_id": account, "threading": {"enabled": False}})
            manager = self.settings_manager._instance
            self.clients = {name: (client, manager)}
        self.settings_manager._instance = manager
        self.client_module.WingifyClient._client_instance = client
        return client

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        client = self.client(case.get("name", ""), case.get("settings"))
        if case["op"] == "init":
            return {"usable": client is not None and getattr(client, "_settings", None) is not None}
        self.posts, self.failure = [], None
        storage = None if case.get("storage") is None else Storage(case["storage"])
        self.storage.get_instance().attach_connector(storage)
        context = {PYTHON_NAMES.get(key, key): value for key, value in case["context"].items()}
        if "platformVariables" in context:
            campaigns = context.pop("platformVariables")["webTestingCampaigns"]
            context["platform_variables"] = {"web_testing_campaigns": campaigns}
        passed: list[Any] = []
        client.options["integrations"] = {"callback": lambda values: passed.append(copy.deepcopy(values))}
        result = OPERATIONS[case["op"]](client, case, context)
        result["events"] = [event["d"] for post in self.posts for event in post.get("ev", [post])]
        result["writes"] = storage.writes if storage else []
        result["failure"] = self.failure
        result["passed"] = passed[-1] if passed else None
        return result


def get_flag(client: Any, case: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    flag = client.get_flag(case["featureKey"], context)
    return {"enabled": flag.is_enabled(), "variables": flag.get_variables(), "uuid": flag.get_uuid()}


def track_event(client: Any, case: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    return {"result": client.track_event(case["eventName"], context, case["properties"])}


def set_attribute(client: Any, case: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    client.set_attribute(case["attributes"], context)
    return {}


OPERATIONS = {"getFlag": get_flag, "trackEvent": track_event, "setAttribute": set_attribute}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the SDK prints must not get among the answers
    child = Child()
    for line in sys.stdin:
        try:
            result = child.run(json.loads(line))
        except Exception as error:  # the parent shows it
            result = {"crash": repr(error)}
        answers.write(json.dumps(result, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
