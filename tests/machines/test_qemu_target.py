"""Restores of a QEMU machine: to itself, to a new one, disk by disk; refused where they would do harm."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fuzz_mutation as mutation
import pytest
from lifeline import end_with_starter
from nbd_world import answers, wait_until
from qemu_world import MIB, Machine, image_bytes, read_point, reasons, tokens, wanted

from strongroom.base.errors import SourceError, TargetBusy, TargetDenied
from strongroom.base.streams import BlockTarget
from strongroom.sources.base import Driver, SourceRef
from strongroom.sources.image import ImageDriver
from strongroom.sources.machines.base import DiskWanted, MachinePoint, MachineRestoreWanted
from strongroom.sources.machines.nbd_wire import UnixAddress
from strongroom.sources.machines.qemu import QemuDriver
from strongroom.sources.open import driver_for
from strongroom.sources.qcow2 import Qcow2Driver

DRIVER = QemuDriver(partial(driver_for, "OS::Cinder::Volume"))
SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
DIED = 9
TASK = "6f3c1a52-0000-4000-8000-000000000001"


class Kept:
    """What a backup keeps of a machine."""

    def __init__(self, point: MachinePoint) -> None:
        self.definition = point.definition
        self.disks = [disk.disk for disk in point.disks]
        self.content = read_point(point)
        self.tokens = tokens(point)
        point.commit()

    def wanted(
        self, ref: SourceRef, *names: str, new_name: str | None = None, same: bool = True
    ) -> MachineRestoreWanted:
        disks = tuple(
            DiskWanted(source_id=d.id, name=d.name, size_bytes=d.size_bytes, target_id=None if new_name else d.id)
            for d in self.disks
            if not names or d.name in names
        )
        return MachineRestoreWanted(
            task_id=TASK,
            target=ref,
            same_resource=same,
            disks=disks,
            definition=self.definition,
            new_name=new_name,
        )

    def write_into(self, targets: dict[str, BlockTarget]) -> None:
        """As the engine does: data in pieces, zeros as zeros."""
        for disk in self.disks:
            if disk.id not in targets:
                continue
            content = memoryview(self.content[disk.name])
            for at in range(0, len(content), MIB):
                piece = content[at : at + MIB]
                if any(piece[:1]) or bytes(piece) != bytes(MIB):
                    targets[disk.id].write(at, piece)
                else:
                    targets[disk.id].zero(at, MIB)


@pytest.fixture
def machine(short_path: Path) -> Iterator[Machine]:
    with Machine.with_noise(short_path, "qcow2", "raw") as machine:
        yield machine


@pytest.fixture
def kept(machine: Machine) -> Kept:
    with DRIVER.open_machine(machine.ref(), wanted()) as point:
        return Kept(point)


def test_a_machine_is_restored_to_itself_when_it_does_not_run(machine: Machine, kept: Kept) -> None:
    """Refused while it runs; then all disks are as they were, it starts, and its next backup reads everything."""
    restore = kept.wanted(machine.ref())
    plan = DRIVER.plan_restore(restore)
    assert "The machine runs" in plan.conflicts[0]
    with pytest.raises(TargetBusy, match="The machine runs"):
        DRIVER.open_target(plan, {})
    for disk in ("vd0", "vd1"):
        machine.write(disk, 0, 8 * MIB, 55)
    machine.quit()
    plan = DRIVER.plan_restore(restore)
    assert plan.conflicts == () and plan.needed_bytes == 32 * MIB
    with DRIVER.open_target(plan, {}) as target:
        kept.write_into(dict(target.disks))
        assert image_bytes(machine.disks["vd0"], machine.folder)[:1] == b"\x37"  # nothing live before finish
        report = target.finish()
    assert report.written_bytes > 0
    for disk, path in machine.disks.items():
        assert image_bytes(path, machine.folder) == kept.content[disk]
    assert [path.name for path in machine.folder.iterdir() if path.name.startswith(".strongroom")] == []
    machine.start()
    with DRIVER.open_machine(machine.ref(), wanted(kept.tokens)) as point:
        assert read_point(point) == kept.content
        assert all(reasons(point).values())


def test_a_disk_is_restored_by_itself(machine: Machine, kept: Kept) -> None:
    """The others stay as they are."""
    machine.write("vd0", 0, MIB, 56)
    machine.write("vd1", 0, MIB, 57)
    machine.quit()
    with DRIVER.open_target(DRIVER.plan_restore(kept.wanted(machine.ref(), "vd1")), {}) as target:
        kept.write_into(dict(target.disks))
        target.finish()
    assert image_bytes(machine.disks["vd1"], machine.folder) == kept.content["vd1"]
    assert image_bytes(machine.disks["vd0"], machine.folder) == bytes(machine.content["vd0"])


def test_a_new_machine_is_made_and_starts(machine: Machine, kept: Kept) -> None:
    """Its own images and sockets, the same content, while the old one runs on."""
    restore = kept.wanted(machine.ref(), new_name="copy")
    plan = DRIVER.plan_restore(restore)
    assert plan.conflicts == ()
    with DRIVER.open_target(plan, {}) as target:
        kept.write_into(dict(target.disks))
        assert not (machine.folder / "copy").exists()
        target.finish()
    made = machine.folder / "copy"
    assert sorted(path.name for path in made.iterdir()) == ["machine.json", "start.sh", "vd0.qcow2", "vd1.raw"]
    for disk in ("vd0.qcow2", "vd1.raw"):
        assert image_bytes(made / disk, machine.folder) == kept.content[disk[:3]]
    script = (made / "start.sh").read_text().replace(str(machine.folder / "qmp-test"), str(made / "other.sock"))
    (made / "start.sh").write_text(script)
    assert str(machine.disks["vd0"]) not in script and json.loads((made / "machine.json").read_text())["name"] == "copy"
    process = subprocess.Popen(
        [made / "start.sh"],
        preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
    )
    try:
        monitor = made / "monitor.sock"
        wait_until(lambda: answers(UnixAddress(path=str(monitor))), "the new machine runs")
        ref = SourceRef(resource_id="new", type="OS::Nova::Server", path=f"qemu:{monitor}?scratch={made}".encode())
        with DRIVER.open_machine(ref, wanted()) as point:
            assert read_point(point) == kept.content
            assert {disk.disk.place for disk in point.disks} == {str(made / "vd0.qcow2"), str(made / "vd1.raw")}
    finally:
        process.kill()
        process.wait()
    assert machine.status() == "running"


def test_a_restore_that_is_given_up_changes_nothing(machine: Machine, kept: Kept) -> None:
    """Neither the old machine nor half of a new one; and what a killed attempt left goes at the next, or by recover."""
    names = {path.name for path in machine.folder.iterdir()}
    with DRIVER.open_target(DRIVER.plan_restore(kept.wanted(machine.ref(), new_name="copy")), {}) as target:
        kept.write_into(dict(target.disks))
    assert {path.name for path in machine.folder.iterdir()} == names
    left = machine.folder / f".strongroom-{TASK}"
    left.mkdir()
    (left / "vd0.qcow2").write_bytes(b"half")
    with DRIVER.open_target(DRIVER.plan_restore(kept.wanted(machine.ref(), new_name="copy")), {}) as target:
        assert not (left / "vd0.qcow2").exists()
    assert not left.exists()
    left.mkdir()
    ref = SourceRef(
        resource_id="x",
        type="OS::Nova::Server",
        path=f"qemu:{machine.path}?scratch={machine.folder}&images={machine.folder}".encode(),
    )
    assert DRIVER.recover(ref, frozenset({"another"})) == ()
    assert [each.task_id for each in DRIVER.recover(ref, frozenset({TASK}))] == [TASK]
    assert not left.exists()
    machine.write("vd0", 0, MIB, 58)
    machine.quit()
    with DRIVER.open_target(DRIVER.plan_restore(kept.wanted(machine.ref())), {}) as target:
        kept.write_into(dict(target.disks))
    assert image_bytes(machine.disks["vd0"], machine.folder) == bytes(machine.content["vd0"])


def die_restoring(kept: Kept, ref: SourceRef, step: int) -> None:
    """A process that restores, and is gone at the step: the renames and what makes each of them durable."""
    steps = iter(range(1, step + 1))

    def trace(_: str) -> None:
        if next(steps) == step:
            os._exit(DIED)

    def driver_of(path: bytes) -> Driver:
        return Qcow2Driver(trace=trace) if path.endswith(b"qcow2") else ImageDriver(trace=trace)

    child = os.fork()
    if not child:
        try:
            driver = QemuDriver(driver_of)
            with driver.open_target(driver.plan_restore(kept.wanted(ref)), {}) as target:
                kept.write_into(dict(target.disks))
                target.finish()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == DIED


@pytest.mark.parametrize("step", [3, *(pytest.param(step, marks=pytest.mark.long) for step in (1, 2, 4))])
def test_a_death_among_the_renames_leaves_no_disks_of_two_moments(machine: Machine, kept: Kept, step: int) -> None:
    """They go forward by the next attempt before it does anything else, and by `recover`; not below a machine that was
    started in between."""
    ref = machine.ref()
    names = {path.name for path in machine.folder.iterdir()}
    for settled_by in ("attempt", "recover"):
        for disk in ("vd0", "vd1"):
            machine.write(disk, 0, 8 * MIB, 60 + step)
        machine.quit()
        die_restoring(kept, ref, step)
        found = {disk: image_bytes(path, machine.folder) for disk, path in machine.disks.items()}
        assert [found[disk] == kept.content[disk] for disk in ("vd0", "vd1")] == [step > 1, step > 3]
        if settled_by == "recover":
            machine.start()
            with pytest.raises(TargetBusy, match="of two moments"):
                DRIVER.recover(ref, frozenset({TASK}))
            machine.quit()
            assert DRIVER.recover(ref, frozenset({"another"})) == ()
            (settled,) = DRIVER.recover(ref, frozenset({TASK}))
            assert (settled.task_id, settled.outcome) == (TASK, "forward")
        else:
            with DRIVER.open_target(DRIVER.plan_restore(kept.wanted(ref)), {}):
                pass
        assert {disk: image_bytes(path, machine.folder) for disk, path in machine.disks.items()} == kept.content
        machine.start()
        assert {path.name for path in machine.folder.iterdir()} <= names | {"qmp", "qmp-test"}


def test_a_mark_that_is_not_ours_moves_nothing(machine: Machine, kept: Kept) -> None:
    """Scratch folders may be open to anybody: what names other files is refused, what another owns is not seen."""
    machine.quit()
    mark = machine.folder / f".strongroom-{TASK}.ready"
    prey, staged = machine.folder / "prey", machine.folder / f".strongroom-{TASK}-x"
    prey.write_text("kept")
    for moves in ([[str(prey), str(machine.disks["vd0"])]], [[str(staged), "/etc/strongroom-prey"]]):
        mark.write_text(json.dumps(moves))
        with pytest.raises(TargetDenied, match="Remove it"):
            DRIVER.recover(machine.ref(), frozenset({TASK}))
    mark.write_text(json.dumps([[str(staged), str(prey)]]))
    os.link(mark, machine.folder / "second-name")
    staged.write_text("planted")
    assert DRIVER.recover(machine.ref(), frozenset({TASK})) == ()
    assert prey.read_text() == "kept"
    with DRIVER.open_target(DRIVER.plan_restore(kept.wanted(machine.ref())), {}) as target:
        kept.write_into(dict(target.disks))
        target.finish()


def test_what_cannot_be_restored_is_refused_with_a_sentence(machine: Machine, kept: Kept) -> None:
    """Another machine, a name that leads elsewhere or is taken, a definition that is none."""
    machine.quit()
    with pytest.raises(TargetDenied, match="Restore to a new machine"):
        DRIVER.open_target(DRIVER.plan_restore(kept.wanted(machine.ref(), same=False)), {})
    for name in ("../copy", "", "a/b", ".."):
        with pytest.raises(TargetDenied):
            DRIVER.plan_restore(kept.wanted(machine.ref(), new_name=name))
    (machine.folder / "copy").mkdir()
    assert "exists already" in DRIVER.plan_restore(kept.wanted(machine.ref(), new_name="copy")).conflicts[0]
    for definition in (b"", b"[]", b"{" * 100_000, b'{"kind": "qemu", "disks": 7}'):
        kept.definition = definition
        with pytest.raises(SourceError, match="no definition"):
            DRIVER.plan_restore(kept.wanted(machine.ref()))
    kept.definition = b'{"kind": "qemu", "disks": [], "command_line": [], "working_folder": "/"}'
    assert "does not say where" in DRIVER.plan_restore(kept.wanted(machine.ref())).conflicts[0]


def test_no_wounded_definition_brings_anything_but_an_error(short_path: Path) -> None:
    """A restore plan over seeded damage: one SourceError, or a plan that can be told; nothing is touched."""
    disks = [
        {"id": f"d{at}", "name": f"vd{at}", "size_bytes": MIB, "format": fmt, "place": f"{short_path}/vd{at}.{fmt}"}
        for at, fmt in enumerate(("qcow2", "raw"))
    ]
    command = ["qemu-system-x86_64", "-qmp", f"unix:{short_path}/qmp,server=on", "-drive", f"file={short_path}/vd1.raw"]
    sound = {"kind": "qemu", "disks": disks, "command_line": command, "working_folder": "/", "agent": None, "nics": []}
    ref = SourceRef(resource_id="x", type="OS::Nova::Server", path=f"qemu:{short_path}/qmp".encode())
    refused = 0
    for number in range(1500):
        chance = random.Random(f"{SEED} {number}")
        raw = json.dumps(sound).encode()
        for _ in range(1 + chance.randrange(3)):
            raw = mutation.damage_json(chance, raw)
        new_name = "copy" if number % 2 else None
        restore = MachineRestoreWanted(
            task_id=TASK,
            target=ref,
            same_resource=True,
            disks=tuple(
                DiskWanted(source_id=f"d{at}", name=f"vd{at}", size_bytes=MIB, target_id=None) for at in range(2)
            ),
            definition=raw,
            new_name=new_name,
        )
        try:
            plan = DRIVER.plan_restore(restore)
            refused += bool(plan.conflicts)
        except SourceError:
            refused += 1
    assert 300 < refused < 1500
    assert list(short_path.iterdir()) == []
