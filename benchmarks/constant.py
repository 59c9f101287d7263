"""A server that answers a constant to everything: the HTTP front alone.

python benchmarks/constant.py PORT
"""

import asyncio
import sys

import uvloop

from tornado_gateway.http.limits import ServerOptions
from tornado_gateway.http.messages import Response
from tornado_gateway.http.server import Server

ANSWER = Response(200, b'{"isEnabled":true,"variables":[{"value":"on","type":"string","key":"title","id":1}]}')


async def main(port: int) -> None:
    server = Server(ServerOptions(lambda method, path: lambda request: ANSWER))
    await server.listen("127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
