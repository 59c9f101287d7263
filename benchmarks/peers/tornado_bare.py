"""Tornado's RequestHandler: parses the body, answers a constant. The port is the first argument."""

import asyncio
import json
import sys

from tornado.web import Application, RequestHandler

ANSWER = b'{"isEnabled":true,"variables":[{"value":"on","type":"string","key":"title","id":1}]}'


class GetFlag(RequestHandler):
    def post(self) -> None:
        json.loads(self.request.body)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(ANSWER)


async def main(port: int) -> None:
    application = Application([("/server-side/getFlag|/events/t", GetFlag)], log_function=lambda handler: None)
    application.listen(port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
