"""A tree that an agent puts together at its host: the TreeTarget at the server's end.

Steps are collected and sent in large messages, in their order; the host goes through them one after the other. What
fails there is heard with the next step, or at the end. Only a link waits for its answer.
"""

import threading
from types import TracebackType
from typing import Final, Literal

from strongroom.base.errors import SourceUnreachable, StrongroomError
from strongroom.base.streams import Attributes, Entry, Path
from strongroom.base.units import KIB
from strongroom.sources.base import TargetReport
from strongroom.sources.hosts.link import Session
from strongroom.sources.hosts.messages import (
    BeginFile,
    Bytes,
    EndFile,
    Failed,
    Finish,
    Finished,
    Linked,
    MakeFolder,
    MakeLink,
    MakeNode,
    Pour,
    error_of,
    from_agent,
    pack,
)

POUR_BYTES = 256 * KIB  # content in one message, and as much more at most
POUR_STEPS = 512

_Step = MakeFolder | MakeNode | BeginFile | Bytes | EndFile


class HostTree:
    """TreeTarget of a host; from several threads."""

    def __init__(self, session: Session) -> None:
        self._channel = session.channel
        self._lock = threading.Lock()
        self._steps: list[_Step] = []
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._files = 0
        self._failed: StrongroomError | None = None  # the first that the host told: what it says of later steps follows

    def folder(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        with self._lock:
            self._add(MakeFolder(path, entry, attributes))

    def file(self, path: Path, entry: Entry, attributes: Attributes) -> "HostFile":
        with self._lock:
            self._files += 1
            number = self._files
            self._add(BeginFile(number, path, entry, attributes))
        return HostFile(self, number)

    def node(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        with self._lock:
            self._add(MakeNode(path, entry, attributes))

    def link(self, path: Path, first: Path, entry: Entry, attributes: Attributes) -> bool:
        with self._lock:
            self._pour()
            self._channel.send(pack(MakeLink(path, first, entry, attributes)))
            answer = self._answer()
            if not isinstance(answer, Linked):
                raise SourceUnreachable(reason="The agent answered something else than it was asked.")
            return answer.made

    def finish(self) -> None:
        """Made durable by HostTarget.finish, at the host."""
        with self._lock:
            self._pour()

    def write(self, number: int, offset: int, data: memoryview) -> None:
        """Content of an open file; called by HostFile."""
        with self._lock:
            for start in range(0, len(data), POUR_BYTES):
                piece = bytes(data[start : start + POUR_BYTES])
                self._tail.append(piece)
                self._tail_bytes += len(piece)
                self._add(Bytes(number, offset + start, len(piece)))

    def end(self, number: int) -> None:
        """A file is complete; called by HostFile."""
        with self._lock:
            self._add(EndFile(number))

    def take_finished(self) -> Finished:
        """Have the host finish, and wait for it."""
        with self._lock:
            self._pour()
            self._channel.send(pack(Finish()))
            answer = self._answer()
            if not isinstance(answer, Finished):
                raise SourceUnreachable(reason="The agent answered something else than it was asked.")
            return answer

    def _add(self, step: _Step) -> None:
        self._steps.append(step)
        if self._tail_bytes >= POUR_BYTES or len(self._steps) >= POUR_STEPS:
            self._pour()

    def _pour(self) -> None:
        if self._failed is not None:
            raise self._failed
        early = self._channel.take(0)
        if early is not None:
            self._require_sound(from_agent(early).head)
        if self._steps:
            steps, tail = tuple(self._steps), self._tail
            self._steps, self._tail, self._tail_bytes = [], [], 0
            self._channel.send(pack(Pour(steps), *tail))

    def _answer(self) -> object:
        payload = self._channel.take()
        assert payload is not None
        head = from_agent(payload).head
        self._require_sound(head)
        return head

    def _require_sound(self, head: object) -> None:
        if isinstance(head, Failed):
            self._failed = error_of(head.kind, head.reason, head.detail)
            raise self._failed


class HostFile:
    """One file on its way; FileTarget."""

    def __init__(self, tree: HostTree, number: int) -> None:
        self._tree = tree
        self._number = number

    def write(self, offset: int, data: memoryview) -> None:
        self._tree.write(self._number, offset, data)

    def close(self) -> None:
        self._tree.end(self._number)


class HostTarget:
    """A staged restore at a host; Target. Leaving it without finish() makes the host roll back."""

    kind: Final[Literal["tree"]] = "tree"

    def __init__(self, session: Session) -> None:
        self._session = session
        self.stream = HostTree(session)

    def __enter__(self) -> "HostTarget":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def finish(self) -> TargetReport:
        done = self.stream.take_finished()
        return TargetReport(left_out=done.left_out, written_bytes=done.written_bytes, warnings=done.warnings)
