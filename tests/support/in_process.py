"""A whole gateway in a thread of the test, which can reach into its worker."""

import asyncio
import re
import threading
import urllib.request

import orjson
from process import free_port, sample_document

from tornado_gateway.config import load
from tornado_gateway.process.parent.sockets import bind
from tornado_gateway.process.parent.worker_process import WorkerSlot
from tornado_gateway.process.worker import Worker
from tornado_gateway.telemetry.scoreboard import Scoreboard

TOKEN = "operators-token-1234"
SECONDS = 60


class InProcess:
    """A gateway of the sample account, as a context manager. `stuck_after` is in seconds."""

    def __init__(self, data_dir, vendor, stuck_after, **options):
        sample = sample_document()
        options |= {"ACCOUNT_ID": sample["accountId"], "SDK_KEY": sample["sdkKey"], "UPSTREAM_URL": vendor.url}
        options |= {"HOST": "127.0.0.1", "PORT": free_port(), "DATA_DIR": data_dir, "ADMIN_TOKEN": TOKEN}
        self._config = load({}, {name: str(value) for name, value in options.items()})
        self._stuck_after = stuck_after
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.port, self.data_dir = self._config.port, data_dir
        self.known = self.port, data_dir, vendor

    def __enter__(self):
        self._started, self._error = threading.Event(), None
        self._thread.start()
        assert self._started.wait(SECONDS)
        assert self._error is None, self._error
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(SECONDS)

    async def _serve(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        post = WorkerSlot(0, 0, 1, Scoreboard(), bind("127.0.0.1", self.port), ready_pipe=-1)  # it reports to no parent
        self.worker = Worker(self._config, post, stuck_after_seconds=self._stuck_after)
        try:
            await self.worker.start()
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._started.set()
        await self._stop.wait()
        await self.worker.stop()

    def call(self, make):
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(SECONDS)

    def get(self, path):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        request.add_header("Authorization", f"Bearer {TOKEN}")
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return response.read()

    def json(self, path):
        return orjson.loads(self.get(path))

    def metric(self, name):
        (value,) = re.findall(rf"^{name} (\S+)$", self.get("/metrics").decode(), re.MULTILINE)
        return float(value)

    def track(self, count):
        for number in range(count):
            body = orjson.dumps({"eventName": "purchase", "userId": f"user-{number}"})
            url = f"http://127.0.0.1:{self.port}/server-side/trackEvent"
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                assert response.status == 200
