"""A server that answers a constant: the HTTP front alone, and a vendor that takes everything.

    python benchmarks/constant.py PORT
"""

import asyncio
import sys

import uvloop

from tornado_gateway.http1 import Limits, Response, Server

ANSWER = Response(200, b'{"isEnabled":true,"variables":[]}')


async def main(port: int) -> None:
    server = Server(lambda method, path: lambda request: ANSWER, limits=Limits(max_body_bytes=1 << 26))
    await server.listen("127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
