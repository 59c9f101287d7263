"""The Python SDK in a process of its own: a command in JSON on each line of stdin, its result on RESULTS_FD."""

import json
import os
import re
import socket
import sys
from typing import Any

from vwo import init

resolve = socket.getaddrinfo


def resolve_loopback_only(host: Any, *args: Any, **kwargs: Any) -> Any:
    if host not in ("127.0.0.1", b"127.0.0.1"):
        raise OSError(f"this test does not leave the machine: {host}")
    return resolve(host, *args, **kwargs)


def snake_case(fields: dict[str, Any]) -> dict[str, Any]:
    """The SDK's own spelling of the options and context keys of the others."""
    return {re.sub("[A-Z]", lambda match: "_" + match[0].lower(), key): value for key, value in fields.items()}


class Commands:
    def init(self, options: dict[str, Any]) -> bool:
        self.client = init(snake_case(options))
        return self.client is not None

    def getFlag(self, key: str, context: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        flag = self.client.get_flag(key, snake_case(context))
        return {"isEnabled": flag.is_enabled(), "variables": flag.get_variables()}

    def trackEvent(self, name: str, context: dict[str, Any], properties: dict[str, Any]) -> Any:  # noqa: N802
        return self.client.track_event(name, snake_case(context), properties)

    def setAttribute(self, attributes: dict[str, Any], context: dict[str, Any]) -> None:  # noqa: N802
        self.client.set_attribute(attributes, snake_case(context))

    def setAlias(self, user_id: str, alias_id: str) -> Any:  # noqa: N802
        return self.client.set_alias(user_id, alias_id)

    def updateSettings(self) -> None:  # noqa: N802
        self.client.update_settings()


def main() -> None:
    socket.getaddrinfo = resolve_loopback_only
    commands = Commands()
    with os.fdopen(int(os.environ["RESULTS_FD"]), "w", buffering=1) as results:
        for line in sys.stdin:
            command = json.loads(line)
            try:
                result = {"answer": getattr(commands, command["call"])(*command["args"])}
            except Exception as error:
                result = {"error": repr(error)}
            print(json.dumps(result), file=results)
    os._exit(0)  # or the SDK's threads would keep the process


main()
