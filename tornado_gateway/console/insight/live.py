"""GET /admin/live: the live feed as server-sent events, several times per second."""

import asyncio
import time
from collections.abc import Callable

import orjson

from tornado_gateway import core
from tornado_gateway.console.admin_pages import AdminApi, AdminPage
from tornado_gateway.console.auth import Auth
from tornado_gateway.console.insight.live_feed import SHOWN_PER_SECOND, Filter, Watch
from tornado_gateway.errors import RequestError

SEND_SECONDS = 0.5
MAX_SECONDS = 300.0  # then the browser connects again, and its session is checked again
KEEP_ALIVE_SECONDS = 10.0
LONGEST_FILTER = 200


class LivePage(AdminPage):
    def initialize(  # type: ignore[override]
        self, admin: AdminApi, auth: Auth, is_stopping: Callable[[], bool]
    ) -> None:
        super().initialize(admin, auth)
        self._live = admin.live
        self._is_stopping = is_stopping
        self._has_left = False

    def on_connection_close(self) -> None:
        self._has_left = True

    async def get(self) -> None:
        try:
            watch = self._live.watch(self._filter())
        except RequestError as error:
            self.reject(error)
            return
        try:
            await self._stream(watch)
        finally:
            self._live.unwatch(watch)

    def head(self) -> None:
        try:
            self._filter()
        except RequestError as error:
            self.reject(error)
        else:
            self.set_header("Content-Type", "text/event-stream")

    async def _stream(self, watch: Watch) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        began = sent = time.monotonic()
        self.write(b"retry: 1000\n\n")
        await self.flush()
        while not (self._has_left or self._is_stopping() or time.monotonic() - began > MAX_SECONDS):
            await asyncio.sleep(SEND_SECONDS)
            now = time.monotonic()
            seen, rows = watch.take(round(SHOWN_PER_SECOND * SEND_SECONDS))
            if not rows and now - sent < KEEP_ALIVE_SECONDS:
                continue
            self.write(b"data: %b\n\n" % orjson.dumps({"seen": seen, "seconds": SEND_SECONDS, "rows": rows}))
            await self.flush()
            sent = now

    def _filter(self) -> Filter:
        name = self.environment()
        self._admin.environment(name)
        texts = {key: self.get_query_argument(key, "") for key in ("feature", "user", "outcome")}
        for key, text in texts.items():
            if len(text) > LONGEST_FILTER:
                raise RequestError(400, f"{key}: expected at most {LONGEST_FILTER} characters")
        if texts["outcome"] not in ("", *core.OUTCOMES):
            raise RequestError(400, f"outcome: expected {', '.join(core.OUTCOMES)}")
        return Filter(self._live.name_of(name), **texts)
