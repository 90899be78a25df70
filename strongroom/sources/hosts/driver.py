"""The driver of hosts with an agent (OS::Native::Server): a point and a target that are there, asked from here."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from strongroom.base.errors import SourceError, SourceUnreachable
from strongroom.base.streams import Path
from strongroom.sources.base import (
    Detail,
    DoneCallback,
    Inspection,
    Kind,
    PointWanted,
    Recovered,
    ResourceType,
    RestorePlan,
    RestoreWanted,
    SourceRef,
)
from strongroom.sources.hosts import messages
from strongroom.sources.hosts.link import Session, Station
from strongroom.sources.hosts.messages import (
    BackupJob,
    Begin,
    Commit,
    Done,
    Failed,
    LookJob,
    PointOpened,
    RecoverJob,
    RestoreJob,
    RestorePlanned,
    Root,
    error_of,
    from_agent,
    pack,
)
from strongroom.sources.hosts.target import HostTarget
from strongroom.sources.hosts.tree import HostTree
from strongroom.sources.oserrors import below

LINGER_S = 600.0  # for the host's own command after a backup
PATHS_BYTES_MAX = 8192  # together: a restore point's labels hold them


_NO_PATHS = "No path of the host is named. Add one: strongroom agent add-path."


class HostPoint:
    """A point at a host; Point."""

    kind: Final[Literal["tree"]] = "tree"
    consistency: Final = "crash_consistent"

    def __init__(self, session: Session, opened: PointOpened) -> None:
        self._session = session
        self._opened = opened
        self.token = opened.token[: messages.TEXT_MAX]
        self.taken_at_ns = opened.taken_at_ns
        self.full_reason = opened.full_reason
        self.stream = HostTree(session.channel, opened)
        self._closed = False

    def __enter__(self) -> "HostPoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    @property
    def metadata(self) -> Mapping[str, Detail]:
        return {**dict(list(self._opened.metadata.items())[:32]), "sent_bytes": self.stream.sent_bytes}

    def commit(self) -> None:
        """The restore point stands; what the host does after it, its command included, cannot take it back."""
        if self._closed:
            return
        try:
            self._session.channel.send(pack(Commit()))
            self._session.channel.take(LINGER_S)
        except SourceError:
            return
        finally:
            self.abort()

    def abort(self) -> None:
        if not self._closed:
            self._closed = True
            self._session.close()


class HostDriver:
    """Driver of one host. `check` raises when the job must stop."""

    type: Final[ResourceType] = "OS::Native::Server"
    kind: Final[Kind] = "tree"

    def __init__(self, station: Station, check: Callable[[], None] = lambda: None) -> None:
        self._station = station
        self._check = check

    def inspect(self, ref: SourceRef, *, measure: bool = False) -> Inspection:
        if not self._station.connected:
            reason = f"The agent on host {self._station.name} is not connected. Start it there."
            return Inspection(exists=True, readable=False, reason=reason)
        if not ref.roots:
            return Inspection(exists=True, readable=False, reason=_NO_PATHS)
        if self._station.busy:
            return Inspection(exists=True, readable=True)  # it is at work, so it is well
        try:
            session = self._station.open(self._check)
        except SourceError as err:
            return Inspection(exists=True, readable=False, reason=err.message)
        try:
            looked = _ask(session, LookJob(_roots(ref)), messages.Looked)
            return Inspection(exists=True, readable=True, size_bytes=looked.size_bytes)
        except SourceError as err:
            return Inspection(exists=True, readable=False, reason=err.message)
        finally:
            session.close()

    def open_point(self, ref: SourceRef, wanted: PointWanted) -> HostPoint:
        if not ref.roots:
            raise SourceError(reason=_NO_PATHS)
        if sum(len(path) for path, _ in ref.roots) > PATHS_BYTES_MAX:
            raise SourceError(
                reason=f"The paths of the host are longer than {PATHS_BYTES_MAX} bytes together. Name folders around "
                "them instead."
            )
        job = BackupJob(
            roots=_roots(ref),
            patterns=ref.options.exclude,
            one_file_system=ref.options.one_file_system,
            read_limit_bytes_s=ref.options.read_limit_bytes_s,
            token=wanted.parent_token,
            full=wanted.full,
        )
        session = self._station.open(self._check)
        try:
            return HostPoint(session, _ask(session, job, PointOpened))
        except BaseException:
            session.close()
            raise

    def plan_restore(self, wanted: RestoreWanted) -> RestorePlan:
        session = self._station.open(self._check)
        try:
            planned = _ask(session, _restore_job(wanted), RestorePlanned)
        finally:
            session.close()
        return RestorePlan(
            wanted=wanted,
            staging=b".strongroom-" + wanted.task_id.encode(),
            needed_bytes=planned.needed_bytes,
            free_bytes=planned.free_bytes,
            warnings=planned.warnings,
            conflicts=planned.conflicts,
        )

    def open_target(self, plan: RestorePlan, on_done: DoneCallback | None = None) -> HostTarget:
        session = self._station.open(self._check)
        try:
            _ask(session, _restore_job(plan.wanted), RestorePlanned)
            _ask(session, Begin(), Done)
            return HostTarget(session)
        except BaseException:
            session.close()
            raise

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        session = self._station.open(self._check)
        try:
            answer = _ask(session, RecoverJob(tuple(sorted(finished_tasks))), messages.Recovered)
        finally:
            session.close()
        return tuple(Recovered(task_id=task, outcome="forward" if on else "back") for task, on in answer.outcomes)


def _roots(ref: SourceRef) -> tuple[Root, ...]:
    return tuple(Root(path, excluded) for path, excluded in ref.roots)


def _restore_job(wanted: RestoreWanted) -> RestoreJob:
    aside: Path | None = wanted.sub_path
    return RestoreJob(
        task_id=wanted.task_id,
        roots=wanted.roots,
        same_resource=wanted.same_resource,
        privileged=wanted.target.options.privileged,
        size_bytes=wanted.size_bytes,
        entries=wanted.entries,
        selection=wanted.selection,
        aside=below(b"/", aside) if aside is not None else None,
        excluded=tuple(path for _, excluded in wanted.target.roots for path in excluded),
        force=wanted.force,
    )


def _ask(session: Session, job: messages.Message, wanted: type[Any]) -> Any:
    """Send it and wait for its answer. Raises what the agent met."""
    session.channel.send(pack(job))
    payload = session.channel.take()
    assert payload is not None
    head = from_agent(payload).head
    if isinstance(head, Failed):
        raise error_of(head.kind, head.reason, head.detail)
    if not isinstance(head, wanted):
        raise SourceUnreachable(reason="The agent answered something else than it was asked.", detail=repr(type(head)))
    return head
