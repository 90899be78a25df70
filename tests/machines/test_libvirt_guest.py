"""A booted guest under libvirt that writes all the time: held still for a point, and let go whatever dies."""

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from guest_world import BOOT_S_MAX, DISK_BYTES, Looked, build_initramfs, kernel
from libvirt_world import Hypervisor, Kept, disk_xml, domain_xml, remove_domain
from nbd_world import wait_until

from strongroom.sources.base import SourceRef
from strongroom.sources.machines.libvirt.freeze import Hold
from strongroom.sources.machines.libvirt.scratch import Scratch

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
INCREMENTS = 10


@dataclass(kw_only=True)
class Booted:
    hypervisor: Hypervisor
    name: str
    folder: Path
    domain: Any

    def ref(self) -> SourceRef:
        path = f"libvirt:{self.hypervisor.uri}#{self.name}".encode()
        return SourceRef(resource_id=self.name, type="OS::Nova::Server", path=path)

    def said(self) -> str:
        console = self.folder / "console.log"
        return console.read_text(errors="replace") if console.exists() else ""

    def count(self) -> int:
        found = re.findall(r"COUNT (\d+)", self.said())
        return int(found[-1]) if found else 0

    def wait_for_writes(self, how_many: int = 3) -> None:
        target = self.count() + how_many
        wait_until(lambda: self.count() >= target, "the guest writes on", 120.0)


@pytest.fixture(scope="module")
def booted(hypervisor: Hypervisor) -> Iterator[Booted]:
    """Two ext4 disks, a writer that counts first on the first and then on the second, and qemu-ga."""
    name = f"b{uuid.uuid4().hex[:8]}"
    folder = hypervisor.folder / name
    folder.mkdir()
    disks = ""
    for device in ("vda", "vdb"):
        raw, image = folder / f"{device}.raw", folder / f"{device}.qcow2"
        with open(raw, "wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", raw], check=True)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
        raw.unlink()
        disks += disk_xml(device, image, "qcow2")
    boot = (
        f"<kernel>{kernel()}</kernel><initrd>{build_initramfs(folder / 'initramfs')}</initrd>"
        "<cmdline>console=ttyS0 quiet panic=-1</cmdline>"
    )
    devices = (
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        f"<serial type='file'><source path='{folder}/console.log'/></serial>"
    )
    xml = domain_xml(name, disks, devices=devices, boot=boot, memory_mib=192)
    domain = hypervisor.connection.defineXML(xml)
    domain.create()
    made = Booted(hypervisor=hypervisor, name=name, folder=folder, domain=domain)
    try:
        wait_until(lambda: "READY" in made.said() and made.count() > 2, "the guest writes", BOOT_S_MAX)
        assert "NO-" not in made.said(), made.said()
        wait_until(lambda: "state='connected'" in domain.XMLDesc(), "libvirt sees the agent")
        yield made
    finally:
        remove_domain(hypervisor, name)


def test_points_of_a_writing_guest_are_clean(booted: Booted, tmp_path: Path) -> None:
    """Full and ten incrementals, both disks of one moment, no journal to replay; the guest writes on."""
    kept = Kept(ref=booted.ref())
    for number in range(1 + INCREMENTS):
        with kept.open() as point:
            assert point.consistency == "filesystem_consistent", point.consistency_reason
            booted.wait_for_writes(2)
            content, _ = kept.read(point)
            assert all((disk.full_reason is None) == bool(number) for disk in point.disks)
            kept.commit(point, content)
        first, second = (Looked(kept.of(device), tmp_path) for device in ("vda", "vdb"))
        assert first.clean and second.clean
        assert first.sound and second.sound, first.complaint + second.complaint
        assert 0 <= first.count - second.count <= 1
    assert "WRITE-FAILED" not in booted.said()


def test_without_the_agent_it_is_as_after_a_power_cut(booted: Booted, tmp_path: Path) -> None:
    """Not asked to hold still: journals are replayed, and nothing more is needed; the order of writes holds."""
    kept = Kept(ref=booted.ref())
    with kept.open(application=False) as point:
        assert point.consistency == "crash_consistent" and point.consistency_reason is not None
        content, _ = kept.read(point)
        kept.commit(point, content)
    first, second = (Looked(kept.of(device), tmp_path) for device in ("vda", "vdb"))
    assert first.sound and second.sound, first.complaint + second.complaint
    assert 0 <= first.count - second.count <= 1


def test_a_guest_is_let_go_when_its_worker_is_killed(booted: Booted) -> None:
    """kill -9 between freeze and thaw: the guard thaws."""
    held = hold(booted)
    held.kill()
    held.communicate()
    booted.wait_for_writes()
    booted.hypervisor.virsh("domfsinfo", booted.name)  # the agent answers


def test_a_guest_is_let_go_when_its_worker_hangs(booted: Booted) -> None:
    """A freeze is never longer than it may be; the point then says that it is no more than crash-consistent."""
    scratch = Scratch.make(str(booted.folder), booted.name, 0, None)
    held = Hold(booted.hypervisor.uri, booted.domain, scratch, asked=True, agent=True)
    with held:
        booted.wait_for_writes()  # only after the guard has thawed
    assert held.reached == "crash_consistent"
    assert held.reason is not None and "let go" in held.reason
    scratch.close()


def test_a_guest_is_let_go_by_recover_when_all_died(booted: Booted) -> None:
    """Worker and guard killed: the mark in the scratch folder tells the next look at the machine."""
    held = hold(booted)
    for guard in children(held.pid):
        os.kill(guard, signal.SIGKILL)
    held.kill()
    held.communicate()
    before = booted.count()
    Kept(ref=booted.ref()).driver.recover(booted.ref(), frozenset())
    booted.wait_for_writes()
    assert booted.count() > before
    assert os.listdir(booted.folder / ".strongroom-scratch") == []


def hold(booted: Booted) -> "subprocess.Popen[str]":
    """A process that holds the guest still and then only waits."""
    script = (
        "import sys\n"
        "from strongroom.sources.machines.libvirt.binding import connected, require_domain\n"
        "from strongroom.sources.machines.libvirt.freeze import Hold\n"
        "from strongroom.sources.machines.libvirt.scratch import Scratch\n"
        "uri, name, folder = sys.argv[1:]\n"
        "with connected(uri) as connection:\n"
        "    scratch = Scratch.make(folder, name, 0, None)\n"
        "    held = Hold(uri, require_domain(connection, name), scratch, asked=True, agent=True)\n"
        "    held.__enter__()\n"
        "    print(held.reason, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, booted.hypervisor.uri, booted.name, str(booted.folder)]
    held = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert held.stdout is not None and held.stdout.readline() == "None\n"
    status = booted.hypervisor.virsh("qemu-agent-command", booted.name, '{"execute":"guest-fsfreeze-status"}')
    assert '"frozen"' in status
    return held


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    assert found.split(), "the guard runs"
    return [int(word) for word in found.split()]
