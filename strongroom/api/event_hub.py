"""Who listens to which project's events, and the one look at the database that serves all of them.

    look     every POLL_S while anybody listens: one statement a table, for all projects that are listened to
    deliver  an event goes to every listener of its project; of two events of one task the later one stays
    cut      a listener who leaves too much waiting is let go: it comes back and goes on where it was

Nothing here is durable: what a listener missed it finds in the rows, by the position of its last event.
"""

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import structlog
from prometheus_client import Gauge

from strongroom.api.task_views import RestorePointEvent, TaskEvent, point_view, task_view
from strongroom.base.errors import StrongroomError, Throttled, Unavailable
from strongroom.control.changes import Change, Look, look
from strongroom.control.db import Database
from strongroom.control.operation_logs import OperationLog

log = structlog.get_logger("events")
STREAMS = Gauge("strongroom_event_streams", "Event streams that are open.")

JOIN_S_MAX = 10.0  # as long as a request waits for a connection
SEEN_MAX = 20_000  # rows beyond the horizon; so many only while somebody's transaction stays open for minutes


@dataclass(frozen=True, kw_only=True)
class StreamLimits:
    """What listening may cost.

    per_project, streams  open at once: a console, a few watching commands; of one process
    pending_max           events that wait for one listener: some 500 KB
    rows_max              of one look; more is told as `reset`
    send_s_max            for a listener that does not read, until it is cut
    heartbeat_s           proxies take a minute of silence for death
    check_s               how late a revoked token is noticed
    """

    per_project: int = 16
    streams: int = 200
    pending_max: int = 500
    rows_max: int = 2000
    send_s_max: float = 20.0
    heartbeat_s: float = 15.0
    check_s: float = 5.0
    poll_s: float = 0.5


class Subscription:
    """One listener's waiting events, at most `pending_max`, each object once."""

    def __init__(self, project_id: str, pending_max: int) -> None:
        self.project_id = project_id
        self.wake = asyncio.Event()
        self.joined = asyncio.Event()  # a look that included its project has ended
        self.behind = False  # it left too much waiting
        self._pending: dict[str, bytes] = {}
        self._pending_max = pending_max

    def push(self, key: str, event: bytes) -> None:
        self._pending.pop(key, None)
        if len(self._pending) < self._pending_max:
            self._pending[key] = event
        else:
            self.behind = True
        self.wake.set()

    def take(self) -> bytes:
        """Everything that waits, in order."""
        taken = b"".join(self._pending.values())
        self._pending.clear()
        return taken


class EventHub:
    """One a process. It looks at the database only while somebody listens."""

    def __init__(self, limits: StreamLimits | None = None) -> None:
        self.limits = limits or StreamLimits()
        self.closed = False
        self._subscriptions: set[Subscription] = set()
        self._looking: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()  # somebody waits to join

    async def subscribe(self, database: Database, project_id: str) -> Subscription:
        """What changes after this returns is kept for the listener, until `leave`. Raises Throttled, Unavailable."""
        counted = Counter(subscription.project_id for subscription in self._subscriptions)
        if counted[project_id] >= self.limits.per_project or counted.total() >= self.limits.streams or self.closed:
            raise Throttled(reason="Too many event streams are open. Close one, or ask for the tasks now and then.")
        subscription = Subscription(project_id, self.limits.pending_max)
        self._subscriptions.add(subscription)
        STREAMS.inc()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(database))
            self._looking.add_done_callback(self._ended)
        self._hurry.set()
        try:
            # A look under way may have passed by this project, and the next one begins where that one stood.
            async with asyncio.timeout(JOIN_S_MAX):
                await subscription.joined.wait()
        except TimeoutError as err:
            self.leave(subscription)
            raise Unavailable(reason="The database does not answer in time. Try again in a moment.") from err
        except BaseException:
            self.leave(subscription)
            raise
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Forget a listener; idempotent."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            STREAMS.dec()
        if not self._subscriptions and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def close(self) -> None:
        """The server ends: every stream ends soon, and no new one begins."""
        self.closed = True
        for subscription in self._subscriptions:
            subscription.wake.set()

    def _ended(self, looking: asyncio.Task[None]) -> None:
        """A look that died of our own mistake takes its listeners with it: they come back, and the next one looks."""
        if not looking.cancelled() and (error := looking.exception()) is not None:
            log.error("the look for events died", exc_info=error)
            for subscription in self._subscriptions:
                subscription.behind = True
                subscription.wake.set()

    async def _look(self, database: Database) -> None:
        position: int | None = None
        seen: dict[str, int] = {}  # objects told although their number is not below the horizon: id -> number
        me = asyncio.current_task()
        while self._looking is me:  # its cancel may get lost: base/ending.py
            self._hurry.clear()
            listeners = list(self._subscriptions)
            projects = sorted({listener.project_id for listener in listeners})
            try:
                found = await look(database, projects, position, self.limits.rows_max)
            except StrongroomError as error:
                log.warning("cannot look for events", error=str(error))
            else:
                if self._looking is not me:
                    return
                position = self._deliver(found, seen)
                for listener in listeners:
                    listener.joined.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.limits.poll_s):
                    await self._hurry.wait()

    def _deliver(self, found: Look, seen: dict[str, int]) -> int:
        """Hand events to their listeners; the position of the next look."""
        fresh = [change for change in found.changes if seen.get(change.row.id) != change.number]
        for change in fresh:
            seen[change.row.id] = change.number
            listeners = [s for s in self._subscriptions if s.project_id == change.row.project_id]
            event = event_of(change) if listeners else b""
            for listener in listeners:
                listener.push(change.row.id, event)
        for id_ in [id_ for id_, number in seen.items() if number < found.horizon]:
            del seen[id_]
        if not found.more and len(seen) <= SEEN_MAX:
            return found.horizon
        seen.clear()
        for listener in self._subscriptions:
            listener.push("reset", message("reset", found.ahead))
        return found.ahead


def event_of(change: Change) -> bytes:
    """A task or restore point as it is, in the format of server-sent events."""
    if isinstance(change.row, OperationLog):
        return message("task", change.position, TaskEvent(task=task_view(change.row)))
    return message("restore_point", change.position, RestorePointEvent(restore_point=point_view(change.row)))


def message(kind: str, position: int, data: msgspec.Struct | None = None) -> bytes:
    """One event; its id is the position to go on from."""
    encoded = msgspec.json.encode(data) if data is not None else b"{}"
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (position, kind.encode(), encoded)
