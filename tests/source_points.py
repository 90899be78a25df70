"""Backups of one resource through its driver and a repository of the test's own, without a server."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from strongroom.base.ids import new_id
from strongroom.base.streams import BlockTarget, SilentMonitor
from strongroom.engine import (
    BackupReport,
    BackupRequest,
    DomainSettings,
    MasterKey,
    backup,
    create_repository,
    restore_block,
    restore_tree,
)
from strongroom.engine.repository import Repository
from strongroom.engine.store.open import open_store
from strongroom.sources.base import Detail, Driver, Point, PointWanted, RestoreWanted, SourceRef, TargetReport


@dataclass(kw_only=True)
class Made:
    """One committed backup."""

    report: BackupReport
    token: bytes
    full_reason: str | None
    consistency: str
    metadata: dict[str, Detail]


class Bytes:
    """BlockTarget in memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.content = bytearray(size)

    def write(self, offset: int, data: memoryview) -> None:
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        return None


@dataclass(kw_only=True)
class Points:
    """The chain of one resource's backups: each one's parent is the last committed."""

    driver: Driver
    ref: SourceRef
    repository: Repository
    made: list[Made] = field(default_factory=list)

    def wanted(self, *, full: bool = False) -> PointWanted:
        return PointWanted(parent_token=self.made[-1].token if self.made else None, full=full)

    @contextmanager
    def open(self, *, full: bool = False) -> Iterator[Point]:
        with self.driver.open_point(self.ref, self.wanted(full=full)) as point:
            yield point

    def write(self, point: Point) -> Made:
        """As operations/backup does: the engine, the row, then the commit."""
        parent = self.made[-1].report.root if self.made and point.full_reason is None else None
        request = BackupRequest(backup_id=new_id(), generation=1, parent=parent)
        report = backup(self.repository, point.stream, request, SilentMonitor(), lambda: None)
        made = Made(
            report=report,
            token=point.token,
            full_reason=point.full_reason,
            consistency=point.consistency,
            metadata=dict(point.metadata),
        )
        self.made.append(made)
        point.commit()
        return made

    def take(self, *, full: bool = False) -> Made:
        with self.open(full=full) as point:
            return self.write(point)

    def content(self, made: Made) -> bytes:
        """Of a disk, as its backup gives it back."""
        target: BlockTarget = Bytes(made.report.bytes_total)
        restore_block(self.repository, made.report.root, target)
        return bytes(target.content)  # type: ignore[attr-defined]

    def restore(self, made: Made, target: SourceRef, **fields: object) -> TargetReport:
        values: dict = {"task_id": new_id(), "same_resource": True, "size_bytes": made.report.bytes_total, **fields}
        wanted = RestoreWanted(target=target, kind=self.driver.kind, **values)
        pour = restore_block if self.driver.kind == "block" else restore_tree
        with self.driver.open_target(self.driver.plan_restore(wanted)) as opened:
            pour(self.repository, made.report.root, opened.stream)  # type: ignore[operator]
            return opened.finish()


def make_points(driver: Driver, path: Path | bytes, base: Path) -> Points:
    """A chain for the resource at `path`, in a new repository below `base`."""
    kind = driver.type
    ref = SourceRef(resource_id=new_id(), type=kind, path=os.fsencode(path))
    base.mkdir(exist_ok=True)
    store = open_store(f"file://{base}/store")
    repository = create_repository(store, "vault", MasterKey.create(base / "master.key"), DomainSettings())
    return Points(driver=driver, ref=ref, repository=repository)
