"""The official Python SDK behind Tornado's RequestHandler: getFlag decided by the SDK, its events sent in batches.

The port is the first argument.
"""

import asyncio
import json
import os
import sys
from typing import Any

from tornado.web import Application, RequestHandler
from vwo import init


class GetFlag(RequestHandler):
    def initialize(self, client: Any) -> None:
        self.client = client

    def post(self) -> None:
        body = json.loads(self.request.body)
        context = {"id": body["userId"], "custom_variables": body.get("customVariables", {})}
        flag = self.client.get_flag(body["featureKey"], context)
        answer = {"isEnabled": flag.is_enabled(), "variables": flag.get_variables()}
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(json.dumps(answer, separators=(",", ":")))


def sdk() -> Any:
    return init(
        {
            "account_id": int(os.environ["ACCOUNT_ID"]),
            "sdk_key": os.environ["SDK_KEY"],
            "proxy_url": f"http://127.0.0.1:{os.environ['VENDOR_PORT']}",
            "batch_event_data": {"events_per_request": 100, "request_time_interval": 600},
            "is_usage_stats_disabled": True,
            "logger": {"level": "ERROR"},
        }
    )


async def main(port: int) -> None:
    application = Application([("/server-side/getFlag", GetFlag, {"client": sdk()})], log_function=lambda handler: None)
    application.listen(port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
