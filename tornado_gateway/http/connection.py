"""One client of the HTTP/1.1 server: responses in the order of their requests, gates that hold them back.

Data routes are plain functions from `Request` to `Response`; everything else goes to a `tornado.web.Application`
through Tornado's public interfaces (`streamed.py`). `reader.py` turns bytes into requests.

Decisions that HTTP leaves open:

- Pipelined requests do not wait for earlier responses, which would cost one group commit each. Responses leave in
  order. The first request that arrives starts at once, those behind it in turn with other clients (`RunQueue`). Only
  requests for the Tornado application start one after the other, because they stream.
- Data routes send no Date: it would have to be rendered anew each second, and no known client reads it.
- A connection is closed by half-closing it and reading on for a moment. Closing at once with unread bytes in the
  kernel would make it send a reset, which can destroy a response that was sent.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable
from time import monotonic
from typing import Any, final

from tornado_gateway.gate import Gate
from tornado_gateway.http.limits import MAX_QUEUED_BYTES, SHARE_SECONDS, WRITE_BYTES, RunQueue, ServerOptions
from tornado_gateway.http.messages import CONTINUE, OVERLOADED, Handler, Request, Response, Streamed, respond_not_found
from tornado_gateway.http.output import Output
from tornado_gateway.http.reader import BODY, CONTINUE_DUE, ENDED, IDLE, NO_EXPECTATION, Reader
from tornado_gateway.http.request_ids import error_response, failure_response, log_fields, outcome
from tornado_gateway.http.streamed import Page, PageContext
from tornado_gateway.logs import ThrottledLog

logger = logging.getLogger(__name__)


@final
class Activity:
    """The connections of a server, and the tasks of their requests."""

    def __init__(self) -> None:
        self.clients: set[Connection] = set()
        self.orphans: set[Connection] = set()  # connections that the peer has closed, with requests in flight
        self.tasks: set[asyncio.Future[Any]] = set()
        self.run_queue = RunQueue()
        self.pages = RunQueue(every=4)  # besides: a page takes 5 to 10 ms of its turn
        self.log = ThrottledLog(logger)


class Connection(asyncio.Protocol):
    """One client. A request goes through these places, and everything that moves it is in this class:

    held (bytes not read yet) -> reader -> waiting (not started yet) -> queue (started, in order) -> output.
    Without pipelining and gates only reader and output are used.
    """

    __slots__ = (
        *("activity", "blocked", "corked", "eof", "find", "gate", "has_served", "held", "is_lingering"),
        *("is_queued", "last_progress", "on_response", "options", "output", "peer", "queue", "queued_bytes", "reader"),
        *("since", "stopping", "tls", "waiting"),
    )

    def __init__(self, options: ServerOptions, activity: Activity, stopping: bool = False, peer: str = "") -> None:
        self.options = options
        self.activity = activity
        self.find = options.find
        self.on_response = options.on_response
        self.stopping = stopping
        self.reader = Reader(options, self._deliver)
        self.output = Output(self._block, self._resume_serving)
        self.tls = self.eof = self.is_lingering = False
        self.peer = self.reader.peer = peer  # if a proxy has reported it; otherwise that of the socket
        self.held: deque[bytes] = deque()
        self.waiting: deque[Request] = deque()
        self.queue: deque[Request] = deque()
        self.queued_bytes = 0  # of the complete responses in the queue
        self.gate: Gate | None = None  # the last one that knows this connection, so that it is called only once
        self.has_served = False  # a request of the bytes that have just arrived
        self.is_queued = False  # in the run queue
        self.corked = self.blocked = False
        self.last_progress = (-1, 0, 0)
        self.since = 0.0  # this and the last line are for the sweep of the server

    # --- Called by the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.output.transport = transport  # type: ignore[assignment]  # asyncio hands a Transport to a stream protocol
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple) and not self.peer:
            self.peer = self.reader.peer = peer[0].removeprefix("::ffff:")
        self.tls = transport.get_extra_info("sslcontext") is not None
        if self.tls:  # as for plain connections; the default for TLS is eight times as much
            transport.set_write_buffer_limits(WRITE_BYTES)  # type: ignore[attr-defined]  # see above
        self.activity.clients.add(self)
        self.activity.run_queue.newcomers.add(self)
        most = self.options.limits.max_connections
        if most and len(self.activity.clients) > most:
            self.activity.log.error("connections", "too many connections: beyond %d, new ones get a 503", most)
            self.reject(OVERLOADED)

    def data_received(self, data: bytes) -> None:
        reader = self.reader
        if reader.phase >= ENDED:
            return
        run_queue = self.activity.run_queue
        if self.blocked or run_queue.newcomers or len(data) > self.options.small_bytes:
            has_turn = run_queue.admits(self)
            if self.blocked or not has_turn or len(data) > self.options.slice_size(data):
                self._hold_and_pump(data)
                return
        self.corked, self.has_served = True, False
        reader.read(data)
        self.corked = False
        if reader.phase or self.blocked or self.stopping:
            self.flush()
        if self.output.pieces:
            self.output.write_out()

    def eof_received(self) -> bool:
        """Respond to the requests of a client that sends no more but may still read. TLS has no such half-close."""
        self.eof = True
        for page in [request.page for request in self.queue if request.page is not None]:  # streams leave the queue
            page.client_closed()
        if self.tls:
            return False
        self._settle()
        return bool(self.queue or self.waiting or self.held or self.output.unsent_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        """Complete the requests of a peer that has closed the connection; their responses are dropped."""
        self.activity.clients.discard(self)
        self.activity.run_queue.newcomers.discard(self)
        self.activity.orphans.add(self)
        self.output.lost()
        pages = [request.page for request in self.queue if request.page is not None]
        self.queue = deque(request for request in self.queue if request.page is None)
        for page in pages:
            page.client_closed()
            page.start()
        self._send_ready()
        self._pump()

    def pause_writing(self) -> None:
        """Accept no more requests, because the peer does not read its responses as fast as they are written."""
        self.output.pause()

    def resume_writing(self) -> None:
        self.output.resume()

    # --- Reading ---

    def _hold_and_pump(self, data: bytes) -> None:
        size = self.options.slice_size(data)
        self.held.extend(data[at : at + size] for at in range(0, len(data), size))
        self._pump()

    def _pump(self) -> None:
        """If there is room, wait for the turn of waiting requests and held slices; without any, read on."""
        if self.corked:
            return
        if self.waiting or self.held:
            if not self.is_queued and self._can_advance():
                self.is_queued = True
                self._block()
                self.activity.run_queue.add(self._take_turn)
        elif self.blocked and self._has_room() and not self.is_starved():
            self.blocked = False
            self.reader.deliver = self._deliver
            self._resume_reading()
        self._end_turn()

    def _take_turn(self) -> bool:
        """Start waiting requests and read held slices, while there is room, but not for long."""
        end = monotonic() + SHARE_SECONDS
        self.is_queued, self.corked = False, True
        while self._can_advance():
            self._advance()
            if monotonic() >= end:
                break
        self.corked = False
        self._send_ready()
        self._pump()
        return False

    def _advance(self) -> None:
        if self._is_ending():
            self._drop_input()
        elif self.waiting:
            self._serve(self.waiting.popleft())
        else:
            self.reader.read(self.held.popleft())
            if self.reader.phase >= ENDED:
                self.held.clear()

    def _is_ending(self) -> bool:
        """Whether a started response is the last one: an open stream, or a page that closes the connection."""
        return bool(self.queue) and not self.queue[-1].keep_alive

    def _drop_input(self) -> None:
        """Read nothing more, and drop the requests that can get no response any more."""
        self.reader.end()
        self.held.clear()
        self.waiting.clear()

    def reject(self, response: Response) -> None:
        """Read nothing more; `response` is the last one, after those of earlier requests."""
        self.reader.reject(response)
        self.held.clear()
        self._settle()

    def _block(self) -> None:
        self.blocked = True
        self.reader.deliver = self.waiting.append
        transport = self.output.open_transport()
        if transport is not None:
            transport.pause_reading()

    def _has_room(self) -> bool:
        output = self.output
        return (
            not (output.is_paused or output.unsent_bytes)
            and self.queued_bytes < MAX_QUEUED_BYTES
            and len(self.queue) < self.options.limits.max_pipelined
            and not (self.queue and len(self.activity.tasks) >= self.options.limits.max_tasks)
        )

    def _can_advance(self) -> bool:
        return bool(self.waiting or (self.held and not self.is_starved())) and self._has_room()

    def is_starved(self) -> bool:
        """Whether there is no room for more of an unfinished body."""
        return self.reader.phase == BODY and self.options.budget.is_exceeded()

    def _resume_reading(self) -> None:
        transport = self.output.open_transport()
        if transport is not None and not self.eof:
            transport.resume_reading()

    # --- Serving ---

    def _deliver(self, request: Request) -> None:
        if self.has_served or (self.queue and self._is_ending()):
            self._block()
            self.waiting.append(request)
        else:
            self.has_served = True
            self._serve(request)

    def _serve(self, request: Request) -> None:
        try:
            handler = self.find(request.method, request.path)
            if handler is None:
                handler = self._other_handler(request)
                if handler is None:
                    return
            response = self.options.guard(handler, request) if request.wants_echo else handler(request)
        except Exception as error:
            response = error_response(request, error, self.options.error_shape)
        if type(response) is Response:
            gate = request.gate
            if gate is None and not self.queue and not self.stopping:
                self._send(request, response)
                return
            request.response = response
            self.queued_bytes += len(response.encoded)
            self._enqueue(request)
            if gate is not None:
                self._hold(gate)
        else:
            self._enqueue(request)
            self._start_task(request, response)

    def _other_handler(self, request: Request) -> Handler | None:
        """Serve HEAD by the handler of GET. Requests without handler go to the Tornado application."""
        if request.method == b"HEAD" and (handler := self.find(b"GET", request.path)) is not None:
            return handler
        application = self.options.fallback
        if application is None:
            return respond_not_found
        context = PageContext(self.peer, "https" if self.tls else "http")
        request.page = Page(self, context, request, application, self.activity.tasks, self.activity.pages)
        self._enqueue(request)
        self.flush()
        return None

    def _enqueue(self, request: Request) -> None:
        self.queue.append(request)
        if self.queued_bytes >= MAX_QUEUED_BYTES or len(self.queue) >= self.options.limits.max_pipelined:
            self._block()

    def _hold(self, gate: Gate) -> None:
        if gate.is_open:
            self.flush()
        elif self.gate is not gate:
            self.gate = gate
            gate.hold(self)

    def _start_task(self, request: Request, response: Awaitable[Response] | Streamed) -> None:
        if isinstance(response, Streamed):
            response.attach(self, request)
            return
        try:
            task = asyncio.ensure_future(response)
        except TypeError as error:  # neither a Response nor an awaitable
            self._complete(request, error_response(request, error, self.options.error_shape))
            self.flush()
            return
        self.activity.tasks.add(task)
        task.add_done_callback(lambda done: self._finish_task(request, done))

    def _finish_task(self, request: Request, task: asyncio.Future[Response]) -> None:
        self.activity.tasks.discard(task)
        self._complete(request, outcome(request, task, self.options.error_shape))
        if request.gate is not None:
            self._hold(request.gate)
        self.flush()

    def _complete(self, request: Request, response: Response) -> None:
        request.response = response
        self.queued_bytes += len(response.encoded)

    def flush(self) -> None:
        """Send every response that is ready and whose turn it is, and continue with requests that waited for that."""
        self._send_ready()
        if self.corked:
            return
        if self.blocked:
            self._pump()
        else:
            self._end_turn()

    def _send_ready(self) -> None:
        queue, output = self.queue, self.output
        while queue and not output.is_paused and not output.unsent_bytes:
            request = queue[0]
            response = request.response
            if response is None:
                if request.page is not None:
                    request.page.start()
                return
            size = len(response.encoded)
            gate = request.gate
            if gate is not None:
                if not gate.is_open:
                    return
                if gate.failure is not None:
                    response = failure_response(request, gate.failure, self.options.error_shape)
            queue.popleft()
            self.queued_bytes -= size
            self._send(request, response)

    def _end_turn(self) -> None:
        reader, output = self.reader, self.output
        if reader.phase == BODY:
            self._await_body()
        if output.pieces:
            output.write_out()
        if reader.phase >= ENDED or self.eof or output.transport is None:
            self._settle()

    def _await_body(self) -> None:
        """Ask for a body that the client holds back, as soon as all earlier responses are out. Pause without room."""
        incomplete = self.reader.incomplete
        if incomplete.expectation == CONTINUE_DUE and not self.queue and not self.waiting:
            incomplete.expectation = NO_EXPECTATION
            self.output.put(CONTINUE)
        if self.options.budget.is_exceeded():
            self._block()
            self.options.budget.wait(self.flush)

    def _send(self, request: Request, response: Response) -> None:
        plain = request.keep_alive and request.version == "1.1" and request.method != b"HEAD" and not self.stopping
        data = response.encoded if plain and not request.wants_echo else self._render(request, response)
        self.count(request, response.status)
        request.charge = None  # now, because a traceback may keep the request
        output = self.output
        output.pieces.append(data)
        size = output.size = output.size + len(data)
        if size >= WRITE_BYTES:
            output.write_pieces()

    def _render(self, request: Request, response: Response) -> bytes:
        """Return the bytes of the response; of a large one the body, with its head already in the output."""
        lines = self.connection_line(request)
        if request.wants_echo:
            lines += self.options.extra_header_lines(request)
        if len(response.body) < WRITE_BYTES or request.method == b"HEAD":
            return response.render(lines, request.method == b"HEAD")
        self.output.put(response.head(lines))
        return response.body

    def connection_line(self, request: Request) -> bytes:
        """Decide whether the connection continues after this response. Return the header line to say so, if any."""
        is_last = not (self.waiting or self.held or any(other is not request for other in self.queue))
        if self.stopping and self.reader.phase == IDLE and not self.corked and is_last:
            self.reader.phase = ENDED
            request.keep_alive = False
        if not request.keep_alive:
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if request.version == "1.0" else b""

    def count(self, request: Request, status: int) -> None:
        """Report a finished response to the metrics hook."""
        try:
            self.on_response(request, status)
        except Exception:
            logger.exception("the on_response hook failed", extra=log_fields(request))

    def page_finished(self, request: Request) -> None:
        """Continue after the page at the head of the queue has been written completely."""
        request.page = None  # a cycle, which only a garbage collection would free
        if self.queue and self.queue[0] is request:  # else the client has gone
            self.queue.popleft().charge = None
            if not request.keep_alive:
                self._drop_input()  # the handler may have decided so
                self.queue.clear()
            self.flush()

    # --- The end ---

    def _resume_serving(self) -> None:
        """Continue with the responses and requests that waited for the peer to read."""
        self._send_ready()
        self._pump()

    def _settle(self) -> None:
        """Send the rejection, if any, and close, when nothing more will be read and all responses are out."""
        reader, output = self.reader, self.output
        is_over = reader.phase >= ENDED or self.eof or output.transport is None
        if not is_over or self.corked or self.queue or self.waiting or self.held or output.unsent_bytes:
            return
        if reader.rejection is not None:
            rejection, reader.rejection = reader.rejection, None
            self._send(reader.rejected_request(), rejection)
        if output.pieces:
            output.write_out()
        self.linger()

    def linger(self) -> None:
        """Close our side and wait for the peer to close its own."""
        is_first, self.is_lingering = not self.is_lingering, True
        self.reader.phase = ENDED
        output = self.output
        if output.transport is None:
            self.activity.orphans.discard(self)
            self.reader.release()  # this and the next line break reference cycles
            output.release()
        elif self.eof or self.tls:
            output.close()
        elif is_first and not output.transport.is_closing():
            self._resume_reading()
            output.half_close()
