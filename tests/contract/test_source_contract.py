"""One suite for all source drivers: every MUST of sources/base.py, on a folder, both kinds of image and a device."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from descriptors import open_paths
from source_trees import listing, pump

from strongroom.base.errors import SourceError, SourceGone, StrongroomError
from strongroom.base.streams import BlockStream, BlockTarget, ExtentKind, TreeStream
from strongroom.sources.base import Driver, PointWanted, RestoreWanted, SourceOptions, SourceRef
from strongroom.sources.open import driver_for

SIZE = 1 << 20
BLOCK = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A resource of one kind with some content, and a second one to restore into."""

    driver: Driver
    source: SourceRef
    target: SourceRef
    missing: SourceRef

    def wanted(self, **fields: object) -> RestoreWanted:
        values: dict = {"task_id": "t1", "same_resource": False, "kind": self.driver.kind, "size_bytes": SIZE, **fields}
        return RestoreWanted(target=self.target, **values)


def content(ref: SourceRef) -> object:
    """What a user would compare."""
    path = os.fsdecode(ref.path)
    if path.endswith(".qcow2"):
        subprocess.run(["qemu-img", "convert", "-O", "raw", path, f"{path}.raw"], check=True)
        return Path(f"{path}.raw").read_bytes()
    if not os.path.isdir(path):
        return Path(path).read_bytes()
    found = listing(ref.path)
    for key in ("mtime", "mode"):
        found[()].pop(key)
    return found


@pytest.fixture(params=["folder", "image", "qcow2", "device"])
def resource(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Resource]:
    devices: list[str] = []
    if request.param == "folder":
        for name, text in (("source", "new"), ("target", "old")):
            (tmp_path / name / "d").mkdir(parents=True)
            (tmp_path / name / "d" / "file").write_text(text)
        paths = [tmp_path / "source", tmp_path / "target", tmp_path / "missing"]
        kind = "OS::Sfs::Turbo"
    else:
        paths = [tmp_path / "source", tmp_path / "target", tmp_path / "missing"]
        for path in paths[:2]:
            with open(path, "wb") as out:
                out.truncate(SIZE)
                out.seek(3 * BLOCK)
                out.write(os.urandom(100))
        kind = "OS::Cinder::Volume"
    if request.param == "qcow2":
        for path in paths[:2]:
            subprocess.run(["qemu-img", "convert", "-O", "qcow2", path, f"{path}.qcow2"], check=True)
        paths = [Path(f"{path}.qcow2") for path in paths]
    if request.param == "device":
        if os.geteuid() != 0:
            pytest.skip("loop devices need root")
        for path in paths[:2]:
            made = subprocess.run(["losetup", "-f", "--show", str(path)], capture_output=True, text=True)
            if made.returncode != 0:
                pytest.skip(f"no loop device here: {made.stderr.strip()}")
            devices.append(made.stdout.strip())
        paths = [Path(devices[0]), Path(devices[1]), Path("/dev/strongroom-is-not-there")]

    def ref(path: Path) -> SourceRef:
        return SourceRef(resource_id=path.name, type=kind, path=os.fsencode(path), options=SourceOptions())  # type: ignore[arg-type]

    source, target, missing = (ref(path) for path in paths)
    yield Resource(driver=driver_for(kind, source.path), source=source, target=target, missing=missing)
    for device in devices:
        subprocess.run(["losetup", "-d", device], check=True)


def copy(stream: TreeStream | BlockStream, target: object) -> None:
    """Everything from a stream into a target of the same kind."""
    if hasattr(stream, "folders"):
        pump(stream, target)  # type: ignore[arg-type]
        return
    block_target: BlockTarget = target  # type: ignore[assignment]
    for offset, length, kind in stream.extents():  # type: ignore[attr-defined]
        if kind == ExtentKind.ZERO:
            block_target.zero(offset, length)
            continue
        buffer = memoryview(bytearray(length))
        assert stream.read_into(offset, buffer) == length  # type: ignore[attr-defined]
        block_target.write(offset, buffer)


def test_the_driver_names_its_kind(resource: Resource) -> None:
    """`driver_for` gives a driver of the type that was asked for."""
    assert resource.driver.type == resource.source.type
    assert resource.driver.kind == ("tree" if resource.source.type == "OS::Sfs::Turbo" else "block")


def test_inspect_never_raises_and_names_the_path(resource: Resource) -> None:
    """A resource that is there is readable; one that is missing is told, with its path."""
    assert resource.driver.inspect(resource.source).readable
    assert resource.driver.inspect(resource.source, measure=True).size_bytes
    missing = driver_for(resource.missing.type, resource.missing.path).inspect(resource.missing)
    assert (missing.exists, missing.readable) == (False, False)
    assert os.fsdecode(resource.missing.path) in (missing.reason or "")


def test_a_missing_resource_cannot_be_opened(resource: Resource) -> None:
    """SourceGone, with the path in its sentence."""
    driver = driver_for(resource.missing.type, resource.missing.path)
    with pytest.raises(SourceGone, match=os.fsdecode(resource.missing.path)):
        driver.open_point(resource.missing, PointWanted())


def test_a_point_has_its_token_from_the_start(resource: Resource) -> None:
    """Known from open, equal for an unchanged resource, accepted as a parent; a full point trusts nobody."""
    with resource.driver.open_point(resource.source, PointWanted()) as first:
        token = first.token
        assert first.full_reason
        assert first.consistency == "crash_consistent"
        assert first.kind == resource.driver.kind
        assert first.taken_at_ns > 0
    with resource.driver.open_point(resource.source, PointWanted(parent_token=token)) as second:
        assert second.full_reason is None
    with resource.driver.open_point(resource.source, PointWanted(parent_token=token, full=True)) as third:
        assert third.full_reason


@pytest.mark.parametrize("token", [b"", b"{}", b"[]", b"\xff\xfe", b'{"kind": "folder", "dev": "x"}', b"{" * 5000])
def test_a_token_that_cannot_be_read_means_a_full_point(resource: Resource, token: bytes) -> None:
    """Never an error, never trust."""
    with resource.driver.open_point(resource.source, PointWanted(parent_token=token)) as point:
        assert point.full_reason


def test_commit_and_abort_can_be_repeated(resource: Resource) -> None:
    """In any order; leaving the point afterwards changes nothing; no descriptor stays open."""
    before = open_paths()
    with resource.driver.open_point(resource.source, PointWanted()) as point:
        point.commit()
        point.commit()
        point.abort()
        assert isinstance(point.metadata, dict)
    with pytest.raises(ZeroDivisionError):
        with resource.driver.open_point(resource.source, PointWanted()) as point:
            raise ZeroDivisionError
    assert not open_paths() - before


def test_what_is_read_can_be_written_back(resource: Resource) -> None:
    """Stream to target: equal content, one report, nothing of ours left, no descriptor either."""
    before = open_paths()
    wanted = content(resource.source)
    with resource.driver.open_point(resource.source, PointWanted()) as point:
        plan = resource.driver.plan_restore(resource.wanted())
        assert plan.conflicts == ()
        with resource.driver.open_target(plan) as target:
            assert target.kind == resource.driver.kind
            copy(point.stream, target.stream)
            report = target.finish()
    assert report.written_bytes > 0
    assert content(resource.target) == wanted
    assert resource.driver.recover(resource.target, frozenset({"t1"})) == ()
    assert not open_paths() - before


def test_nothing_live_is_touched_without_finish(resource: Resource) -> None:
    """But on devices, which say so by a plan without a staging place."""
    before = content(resource.target)
    plan = resource.driver.plan_restore(resource.wanted())
    with resource.driver.open_point(resource.source, PointWanted()) as point:
        with resource.driver.open_target(plan) as target:
            copy(point.stream, target.stream)
    if plan.staging is not None:
        assert content(resource.target) == before


def test_a_plan_touches_nothing(resource: Resource) -> None:
    """Planned any number of times, without a trace."""
    before = content(resource.target)
    for _ in range(3):
        resource.driver.plan_restore(resource.wanted())
    assert content(resource.target) == before


def test_the_wrong_kind_is_refused(resource: Resource) -> None:
    """A disk into a folder or the other way round: a conflict in the plan, an error at open_target."""
    other = "block" if resource.driver.kind == "tree" else "tree"
    plan = resource.driver.plan_restore(resource.wanted(kind=other))
    assert plan.conflicts
    with pytest.raises(SourceError):
        resource.driver.open_target(plan)


def test_recover_is_idempotent_and_knows_its_tasks(resource: Resource) -> None:
    """Nothing to do is fine, for tasks nobody ever saw and for a resource that is gone."""
    assert resource.driver.recover(resource.target, frozenset()) == ()
    assert resource.driver.recover(resource.target, frozenset({"t9"})) == ()
    missing = driver_for(resource.missing.type, resource.missing.path)
    assert missing.recover(resource.missing, frozenset({"t9"})) == ()


def test_an_unknown_type_is_an_error_of_ours() -> None:
    """Not a KeyError."""
    with pytest.raises(StrongroomError, match="OS::Nova::Server"):
        driver_for("OS::Nova::Server", b"/")
