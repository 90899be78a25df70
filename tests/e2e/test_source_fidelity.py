"""A folder with everything that backups get wrong comes back as it was, on every file system this machine can mount."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_mounts import mounted
from source_trees import differences, listing, loosen_all, make_tree, pump

from strongroom.base.ids import new_id
from strongroom.base.streams import SilentMonitor
from strongroom.engine import BackupRequest, DomainSettings, MasterKey, backup, create_repository, restore_tree
from strongroom.engine.store.open import open_store
from strongroom.sources.base import PointWanted, RestoreWanted, SourceRef, TargetReport
from strongroom.sources.folder import FolderDriver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes, owners and trusted attributes need root")


@pytest.fixture(params=["ext4", "xfs", "btrfs", "here"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "here":
        yield tmp_path
        loosen_all(tmp_path)
        return
    with mounted(request.param, tmp_path) as point:
        yield point


def ref(path: Path) -> SourceRef:
    return SourceRef(resource_id=new_id(), type="OS::Sfs::Turbo", path=os.fsencode(path))


def wanted(target: Path) -> RestoreWanted:
    return RestoreWanted(task_id=new_id(), target=ref(target), same_resource=True, kind="tree", size_bytes=1 << 20)


def restore(source: Path, target: Path) -> tuple[list[tuple[bytes, ...]], TargetReport]:
    """Stream to target without an engine; what was skipped and what was left out."""
    driver = FolderDriver()
    with driver.open_point(ref(source), PointWanted()) as point:
        with driver.open_target(driver.plan_restore(wanted(target))) as opened:
            skipped = pump(point.stream, opened.stream)
            return skipped, opened.finish()


def test_a_restored_folder_is_identical_but_for_sockets(place: Path) -> None:
    """Names, content, holes, owners, modes, ACLs, attributes, flags, times, links and nodes come back as they were."""
    source, target = place / "source", place / "target"
    missed = make_tree(source)
    target.mkdir()
    (target / "stale").write_text("not in the restore point")
    skipped, report = restore(source, target)
    assert skipped == [(b"sock",)]
    assert report.left_out == ()
    assert differences(listing(source), listing(target)) == [], missed


def test_restoring_over_the_same_tree_replaces_what_is_immutable(place: Path) -> None:
    """A second restore over immutable, append-only and closed entries ends in the same tree."""
    source, target = place / "source", place / "target"
    make_tree(source)
    target.mkdir()
    restore(source, target)
    _, report = restore(source, target)
    assert report.warnings == ()
    assert differences(listing(source), listing(target)) == []


def test_the_engine_brings_the_tree_back_identical(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Folder -> chunks in a repository -> folder: the same acceptance, through backup() and restore_tree()."""
    source, target = place / "source", place / "target"
    make_tree(source)
    target.mkdir()
    base = tmp_path_factory.mktemp("repository")
    store = open_store(f"file://{base}/store")
    repository = create_repository(store, "vault", MasterKey.create(base / "master.key"), DomainSettings())
    driver = FolderDriver()
    with driver.open_point(ref(source), PointWanted()) as point:
        request = BackupRequest(backup_id=new_id(), generation=1)
        report = backup(repository, point.stream, request, SilentMonitor(), lambda: None)
    with driver.open_target(driver.plan_restore(wanted(target))) as opened:
        restore_tree(repository, report.root, opened.stream)
        finished = opened.finish()
    assert finished.left_out == ()
    assert differences(listing(source), listing(target)) == []
