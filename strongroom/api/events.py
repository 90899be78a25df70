"""The event stream of a project under /ext: tasks and restore points as they change, as server-sent events.

    ready          the first event: whatever changes from here on is told. Open the stream, then list what you show
    task           a task as it is now          restore_point   one of CBR's checkpoints as it is now
    reset          too much changed to tell it one by one: list again
    end            the last event, with the reason: credentials that ended, or a server that stops

A client that comes back with Last-Event-ID gets what changed since, perhaps some of it twice. A restore point that is
gone tells nothing any more: the task that deleted it does. Silence is broken by a comment every heartbeat_s.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from strongroom.api.event_hub import EventHub, Subscription, event_of, message
from strongroom.api.operation import Call, Operation
from strongroom.api.task_views import RestorePointEvent, TaskEvent
from strongroom.base.errors import Forbidden, InvalidRequest, StrongroomError, Unavailable
from strongroom.control.access import allowed
from strongroom.control.changes import look
from strongroom.control.db import Database

log = structlog.get_logger("events")

ACTION = "strongroom:events:get"
RETRY_MS = 2000  # when a client comes back by itself
_POSITION = re.compile(r"\d{1,18}")


class EndEvent(msgspec.Struct):
    error_code: str
    error_msg: str


async def stream_events(call: Call) -> Response:
    """Raises Throttled when too many streams are open, InvalidRequest for a position that is none."""
    services = call.services
    last = call.request.headers.get("Last-Event-ID")
    if last is not None and not _POSITION.fullmatch(last):
        raise InvalidRequest(reason="Invalid Last-Event-ID: give the id of an event of this stream, or none.")

    async def still_allowed() -> None:
        """Raises Unauthenticated or Forbidden once the credentials of the request do not hold any more."""
        caller = await services.authenticate(call.request, b"", call.request_id)
        if caller.project_id != call.project_id or not allowed(caller.roles, ACTION):
            raise Forbidden(reason="Your role does not allow this stream any more.")

    subscription = await services.events.subscribe(services.database, call.project_id)
    try:
        first = await _first(services.database, call.project_id, last, services.events.limits.rows_max)
    except BaseException:
        services.events.leave(subscription)
        raise
    return EventStream(services.events, subscription, first, still_allowed)


async def _first(database: Database, project_id: str, last: str | None, rows_max: int) -> bytes:
    """What a stream begins with: where it stands, and what was missed."""
    found = await look(database, [project_id], int(last) if last is not None else None, rows_max)
    # An id from the future is of another time of this database: an older copy of it was put back.
    lost = found.more or (last is not None and int(last) > found.ahead)
    missed = [message("reset", found.horizon)] if lost else [event_of(change) for change in found.changes]
    ready = message("ready", found.horizon if last is None or lost else min(int(last), found.horizon))
    return b"retry: %d\n" % RETRY_MS + ready + b"".join(missed)


class EventStream(Response):
    """Sends what the hub delivers until the client leaves, or has to."""

    def __init__(
        self,
        hub: EventHub,
        subscription: Subscription,
        first: bytes,
        still_allowed: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, media_type="text/event-stream"
        )
        del self.headers["content-length"]
        self._hub, self._subscription = hub, subscription
        self._first, self._still_allowed = first, still_allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_left(receive))
        gone.add_done_callback(lambda _: self._subscription.wake.set())
        try:
            async with asyncio.timeout(self._hub.limits.send_s_max):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send(send, self._first)
            await self._stream(send, gone)
        except TimeoutError:
            # It does not read. What the kernel took is all that it holds: nothing more is kept for it.
            log.info("event stream cut", project=self._subscription.project_id, reason="the client does not read")
            _abort(scope)
            await asyncio.wait({gone}, timeout=1.0)
        finally:
            self._hub.leave(self._subscription)
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    async def _stream(self, send: Send, gone: asyncio.Future[None]) -> None:
        """Raises TimeoutError for a client that does not read."""
        subscription, limits = self._subscription, self._hub.limits
        clock = asyncio.get_running_loop().time
        spoken_at = checked_at = clock()
        while not gone.done():
            subscription.wake.clear()
            if clock() - checked_at >= limits.check_s:
                checked_at = clock()
                reason = await self._refusal()
                if reason is not None:
                    await self._end(send, reason)
                    return
            if subscription.behind:
                raise TimeoutError
            waiting = subscription.take()
            if not waiting and clock() - spoken_at >= limits.heartbeat_s:
                waiting = b": alive\n\n"
            if waiting:
                await self._send(send, waiting)
                spoken_at = clock()
            if self._hub.closed:
                await self._end(send, Unavailable(reason="The server is stopping. Come back in a moment."))
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(min(limits.check_s, limits.heartbeat_s)):
                    await subscription.wake.wait()

    async def _refusal(self) -> StrongroomError | None:
        try:
            await self._still_allowed()
        except Unavailable:
            return None  # nobody can tell just now, and without the database nothing is told either
        except StrongroomError as error:
            return error
        return None

    async def _end(self, send: Send, error: StrongroomError) -> None:
        data = msgspec.json.encode(EndEvent(error_code=error.published_code, error_msg=error.message))
        await self._send(send, b"event: end\ndata: %s\n\n" % data, more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Returns when the connection has taken it. Raises TimeoutError."""
        async with asyncio.timeout(self._hub.limits.send_s_max):
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def _left(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _abort(scope: Scope) -> None:
    """Drop the connection with what it holds: a close would wait for a client that does not read."""
    abort = scope.get("state", {}).get("abort")
    if abort is not None:
        abort()


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="stream_events",
        method="GET",
        path="/ext/v1/{project_id}/events",
        action=ACTION,
        handler=stream_events,
        answer="text/event-stream",
        events={"task": TaskEvent, "restore_point": RestorePointEvent, "end": EndEvent},
    ),
)
