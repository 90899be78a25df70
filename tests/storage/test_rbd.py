"""Ceph RBD: snapshots, exact differences, and restores into images, on a real cluster."""

import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from ceph_world import Ceph, ceph
from harness import Server
from source_points import Points, make_points

from strongroom.base.errors import SourceError, SourceGone, TargetBusy, TargetTooSmall
from strongroom.base.ids import new_id
from strongroom.sources.abilities import abilities
from strongroom.sources.base import RestoreWanted, SourceRef
from strongroom.sources.image import ImageDriver
from strongroom.sources.open import driver_for
from strongroom.sources.rbd import RbdDriver
from strongroom.sources.snapshots.rbd import parse_address

pytestmark = pytest.mark.long

BLOCK = 64 << 10
SIZE = 400 * BLOCK
FILLED = 320 * BLOCK  # whole objects: of a grown object Ceph names what lies between, too


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with ceph(tmp_path_factory.mktemp("ceph")) as running:
        yield running


@pytest.fixture
def disk(cluster: Ceph, tmp_path: Path) -> Points:
    """An image of 25 MiB, all but the last 5 of it data, and its chain of backups."""
    image, raw = f"v{new_id()}", tmp_path / "raw"
    with raw.open("wb") as out:
        out.truncate(SIZE)
        out.write(random.Random(1).randbytes(FILLED))
    features = "layering,exclusive-lock,object-map,fast-diff"
    cluster.rbd("import", "--no-progress", "--image-feature", features, str(raw), f"vols/{image}")
    return make_points(RbdDriver(), cluster.address(image), tmp_path / "repository")


def image_of(points: Points) -> str:
    return parse_address(points.ref.path).image


def snapshots(cluster: Ceph, points: Points) -> list[str]:
    listed = cluster.rbd("snap", "ls", f"vols/{image_of(points)}")
    return [line.split()[1] for line in listed.splitlines()[1:]]


def scribble(cluster: Ceph, points: Points, seed: int, count: int = 20) -> int:
    """Write pieces of 4 KiB and discard a block; bytes of the 64 KiB blocks they touch."""
    chance, touched = random.Random(seed), set()
    orders = []
    for _ in range(count):
        at = chance.randrange(FILLED // 4096) * 4096
        orders.append(f"write -P {chance.randrange(1, 256)} {at} 4k")
        touched.add(at // BLOCK)
    gone = chance.randrange(FILLED // BLOCK)
    orders.append(f"discard {gone * BLOCK} {BLOCK}")
    touched.add(gone)
    cluster.write(image_of(points), *orders)
    return len(touched) * BLOCK


def test_increments_of_an_rbd_image_read_what_changed_and_give_its_state_back(cluster: Ceph, disk: Points) -> None:
    """Full and five increments, written to while each is read: every one restores to the state at its point."""
    states, before = [], 0
    for number in range(6):
        changed = scribble(cluster, disk, number) if number else SIZE
        states.append(cluster.content(image_of(disk)))
        with disk.open() as point:
            later = scribble(cluster, disk, 100 + number)  # after the point: in the next backup
            made = disk.write(point)
        if number:
            assert made.metadata["read_whole"] is None
            assert made.report.bytes_read <= 2.2 * (changed + before)
        else:
            assert made.report.bytes_read <= FILLED, "what was never written was read"
        before = later
        assert len(snapshots(cluster, disk)) == 1
    assert [disk.content(made) for made in disk.made] == states


def test_what_an_aborted_point_of_an_rbd_image_saw_is_in_the_next_one(cluster: Ceph, disk: Points) -> None:
    disk.take()
    kept = snapshots(cluster, disk)
    scribble(cluster, disk, 1)
    with pytest.raises(ZeroDivisionError), disk.open():
        raise ZeroDivisionError
    assert snapshots(cluster, disk) == kept
    made = disk.take()
    assert made.metadata["read_whole"] is None
    assert disk.content(made) == cluster.content(image_of(disk))


@pytest.mark.parametrize("harm", ["removed", "made again"])
def test_without_its_parents_snapshot_an_rbd_image_is_read_whole(cluster: Ceph, disk: Points, harm: str) -> None:
    """Also when one of the same name was made later: its number is another."""
    disk.take()
    name = snapshots(cluster, disk)[0]
    cluster.rbd("snap", "rm", "--no-progress", f"vols/{image_of(disk)}@{name}")
    scribble(cluster, disk, 2)
    if harm == "made again":
        cluster.rbd("snap", "create", "--no-progress", f"vols/{image_of(disk)}@{name}")
    made = disk.take()
    assert "last backup" in str(made.metadata["read_whole"])
    assert disk.content(made) == cluster.content(image_of(disk))


def test_an_rbd_image_that_grew_is_read_whole(cluster: Ceph, disk: Points) -> None:
    disk.take()
    cluster.rbd("resize", "--no-progress", "--size", f"{SIZE + (4 << 20)}B", f"vols/{image_of(disk)}")
    made = disk.take()
    assert made.full_reason is not None
    assert disk.content(made) == cluster.content(image_of(disk))


def test_a_clone_is_read_with_what_it_has_of_its_parent(cluster: Ceph, disk: Points, tmp_path: Path) -> None:
    """Objects that only the parent image has belong to the disk."""
    image = image_of(disk)
    cluster.rbd("snap", "create", "--no-progress", f"vols/{image}@golden")
    cluster.rbd("snap", "protect", f"vols/{image}@golden")
    cluster.rbd("clone", f"vols/{image}@golden", f"vols/{image}-clone")
    clone = make_points(RbdDriver(), cluster.address(f"{image}-clone"), tmp_path / "clone")
    first = clone.take()
    assert clone.content(first) == cluster.content(image)
    scribble(cluster, clone, 3)
    made = clone.take()
    assert made.metadata["read_whole"] is None
    assert clone.content(made) == cluster.content(f"{image}-clone")


KILLED = """
    import os, signal, sys
    from strongroom.sources.base import PointWanted, SourceRef
    from strongroom.sources.open import driver_for
    ref = SourceRef(resource_id=sys.argv[2], type="OS::Cinder::Volume", path=os.fsencode(sys.argv[1]))
    point = driver_for(ref.type, ref.path).open_point(ref, PointWanted(parent_token=bytes.fromhex(sys.argv[3])))
    assert point.token
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_backup_of_an_rbd_image_left_goes_with_the_next_one(cluster: Ceph, disk: Points) -> None:
    disk.take()
    scribble(cluster, disk, 3)
    arguments = [disk.ref.path.decode(), disk.ref.resource_id, disk.made[-1].token.hex()]
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *arguments], capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    assert len(snapshots(cluster, disk)) == 2
    made = disk.take()
    assert made.metadata["read_whole"] is None
    assert disk.content(made) == cluster.content(image_of(disk))
    assert len(snapshots(cluster, disk)) == 1


def test_an_rbd_image_is_restored_in_place(cluster: Ceph, disk: Points) -> None:
    """Only blocks that differ are written; the next increment reads just those again."""
    state = cluster.content(image_of(disk))
    made = disk.take()
    changed = scribble(cluster, disk, 1)
    report = disk.restore(made, disk.ref)
    assert cluster.content(image_of(disk)) == state
    assert 0 < report.written_bytes <= changed
    again = disk.take()
    assert again.metadata["read_whole"] is None
    assert disk.content(again) == state


def test_disks_come_back_into_rbd_images_and_out_of_them(cluster: Ceph, disk: Points, tmp_path: Path) -> None:
    """An RBD image into a file, a file into a larger RBD image; a smaller one is refused."""
    made = disk.take()
    raw = tmp_path / "disk.img"
    raw.touch()
    ref = SourceRef(resource_id="raw", type="OS::Cinder::Volume", path=bytes(raw))
    raws = Points(driver=ImageDriver(), ref=ref, repository=disk.repository)
    raws.restore(made, ref)
    assert raw.read_bytes() == cluster.content(image_of(disk))
    from_raw = raws.take()
    for name, size in (("larger", 2 * SIZE), ("smaller", SIZE // 2)):
        cluster.rbd("create", "--size", f"{size}B", f"vols/{image_of(disk)}-{name}")
    larger = SourceRef(resource_id="l", type="OS::Cinder::Volume", path=cluster.address(f"{image_of(disk)}-larger"))
    disk.restore(from_raw, larger, same_resource=False)
    assert cluster.content(f"{image_of(disk)}-larger") == raw.read_bytes() + bytes(SIZE)
    smaller = SourceRef(resource_id="s", type="OS::Cinder::Volume", path=cluster.address(f"{image_of(disk)}-smaller"))
    with pytest.raises(TargetTooSmall):
        disk.restore(from_raw, smaller, same_resource=False)


def test_an_rbd_image_that_is_open_is_not_restored_over(cluster: Ceph, disk: Points) -> None:
    made = disk.take()
    url = f"rbd:vols/{image_of(disk)}:conf={cluster.conf}"
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdin is not None and user.stdout is not None
        user.stdin.write("write -P 1 0 4k\n")
        user.stdin.flush()
        while "wrote" not in user.stdout.readline():
            pass
        with pytest.raises(TargetBusy):
            disk.restore(made, disk.ref)
        user.stdin.write("quit\n")
        user.stdin.close()
    disk.restore(made, disk.ref)


def test_rbd_images_are_inspected(cluster: Ceph, disk: Points) -> None:
    look = driver_for("OS::Cinder::Volume", disk.ref.path).inspect(disk.ref)
    assert (look.readable, look.size_bytes) == (True, SIZE)
    assert [(each.name, each.works) for each in abilities(disk.ref)] == [("consistency", True), ("incremental", True)]
    gone = SourceRef(resource_id="g", type="OS::Cinder::Volume", path=cluster.address("gone"))
    missing = RbdDriver().inspect(gone)
    assert (missing.exists, missing.readable) == (False, False)
    assert "gone" in str(missing.reason)
    with pytest.raises(SourceGone):
        RbdDriver().open_point(gone, disk.wanted())
    plan = RbdDriver().plan_restore(
        RestoreWanted(task_id="t", target=disk.ref, same_resource=True, kind="tree", size_bytes=1)
    )
    assert plan.conflicts
    assert RbdDriver().recover(disk.ref, frozenset({"t"})) == ()
    with pytest.raises(SourceError, match="no RBD image"):
        RbdDriver().open_point(SourceRef(resource_id="x", type="OS::Cinder::Volume", path=b"rbd:--conf"), disk.wanted())


def test_a_vault_holds_an_rbd_image(cluster: Ceph, disk: Points, tmp_path: Path) -> None:
    """Registered by its address, backed up twice, the second time only what changed, damaged and restored."""
    server = Server(tmp_path / "state").start()
    try:
        with server.client() as client:
            resource = client.register("disk", "ceph", disk.ref.path.decode())
            vault = client.vault("v", "disk", [resource])
            client.settled(client.checkpoint(vault))
            changed = scribble(cluster, disk, 1)
            state = cluster.content(image_of(disk))
            client.settled(client.checkpoint(vault))
            second, _ = client.backups(vault_id=vault, sort="created_at:desc")
            told = client.ok("GET", f"/ext/v1/{client.project}/backups/{second['id']}")["backup"]
            assert told["source"]["read_whole"] is None
            assert told["bytes_read"] <= 2.2 * changed
            scribble(cluster, disk, 2)
            restored = client.restore(second["id"])
            assert restored["status"] == "success", restored
            assert cluster.content(image_of(disk)) == state
            status, _ = client.call(
                "POST",
                "/ext/v1/admin/protectables",
                {"protectable": {"project_id": client.project, "type": "disk", "name": "x", "path": "rbd:a b"}},
            )
            assert status == 400
    finally:
        server.stop()
