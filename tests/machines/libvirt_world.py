"""A libvirt daemon of a test run's own: real libvirtd and QEMU (TCG) in a user and a process name space.

Its sockets, settings and state are in one folder, so nothing of the machine's own libvirt is touched, and nothing needs
systemd. When the run ends, however it ends, the pipe to the first process of the name space ends, and with that process
the kernel ends every other one in it: libvirtd, its QEMUs, whatever hangs.
"""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nbd_world import answers, wait_until

from strongroom.base.streams import ExtentKind
from strongroom.base.units import KIB, MIB
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import MachinePoint, MachineWanted
from strongroom.sources.machines.libvirt.binding import SYSTEM_FOLDERS, connected, library
from strongroom.sources.machines.libvirt.driver import LibvirtDriver
from strongroom.sources.machines.nbd_wire import UnixAddress

READ_BYTES = 256 * KIB
DISK_BYTES = 8 * MIB
_SETTINGS = """
security_driver = "none"
cgroup_controllers = []
namespaces = []
seccomp_sandbox = 0
stdio_handler = "file"
"""
_START = "/usr/sbin/libvirtd >libvirtd.log 2>&1 & cat >/dev/null; exit 0"  # the shell stays, and buries who dies


@dataclass(kw_only=True)
class Hypervisor:
    """A running libvirtd. folder: of this test run, short enough for names of sockets."""

    folder: Path
    connection: Any

    @property
    def uri(self) -> str:
        return f"qemu+unix:///session?socket={self.folder}/run/libvirt/libvirt-sock"

    def virsh(self, *words: str) -> str:
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def libvirtd() -> Iterator[Hypervisor]:
    """One daemon until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="sr-lv-"))
    for name in ("run", "config/libvirt", "cache", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "config/libvirt/qemu.conf").write_text(_SETTINGS)
    places = {"HOME": folder, "XDG_RUNTIME_DIR": folder / "run", "XDG_CONFIG_HOME": folder / "config"}
    places |= {"XDG_CACHE_HOME": folder / "cache", "XDG_DATA_HOME": folder / "data"}
    env = {"PATH": os.environ["PATH"] + ":/usr/sbin", "LC_ALL": "C"} | {name: str(p) for name, p in places.items()}
    spaces = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--pid", "--fork", "--mount-proc"]
    process = subprocess.Popen(
        [*spaces, "sh", "-c", _START], cwd=folder, env=env, stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        socket = UnixAddress(path=str(folder / "run/libvirt/libvirt-sock"))
        wait_until(lambda: process.poll() is not None or answers(socket), "libvirtd listens")
        assert process.poll() is None, (folder / "libvirtd.log").read_text()
        hypervisor = Hypervisor(folder=folder, connection=None)
        with connected(hypervisor.uri) as connection:
            hypervisor.connection = connection
            yield hypervisor
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        shutil.rmtree(folder)


@dataclass(kw_only=True)
class Guest:
    """A domain with a model of what its disks hold: `content` by device, changed by every `write`."""

    hypervisor: Hypervisor
    name: str
    folder: Path
    domain: Any
    content: dict[str, bytearray]
    numbers: random.Random

    def ref(self, options: str = "", resource_id: str | None = None) -> SourceRef:
        return SourceRef(
            resource_id=resource_id or str(uuid.uuid5(uuid.NAMESPACE_OID, self.name)),
            type="OS::Nova::Server",
            path=f"libvirt:{self.hypervisor.uri}#{self.name}{options}".encode(),
        )

    def write(self, device: str, offset: int, length: int) -> None:
        """A pattern, through the running machine's own disk."""
        pattern = self.numbers.randrange(1, 256)
        self.qemu_io(device, f"write -P {pattern} {offset} {length}")
        self.content[device][offset : offset + length] = bytes([pattern]) * length

    def write_some(self, count: int = 3) -> None:
        for device, held in self.content.items():
            for _ in range(count):
                length = self.numbers.choice([512, 4 * KIB, 64 * KIB, 100 * KIB])
                self.write(device, self.numbers.randrange(0, (len(held) - length) // 512) * 512, length)

    def qemu_io(self, device: str, command: str) -> None:
        self.hypervisor.virsh(
            "qemu-monitor-command", self.name, "--hmp", f'qemu-io -d {self._qdev(device)} "{command}"'
        )

    def _monitor(self, command: str, human: int) -> str:
        return str(_qemu_binding().qemuMonitorCommand(self.domain, command, human))

    def kill(self) -> None:
        """As the kernel's OOM killer would."""
        os.kill(self.pid(), signal.SIGKILL)
        wait_until(lambda: not self.domain.isActive(), "libvirt saw QEMU's death")

    def pid(self) -> int:
        for entry in os.listdir("/proc"):
            with suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if b"-name" in words and words[words.index(b"-name") + 1].startswith(f"guest={self.name},".encode()):
                    return int(entry)
        raise AssertionError(f"no QEMU of {self.name}")

    def image(self, device: str) -> Path:
        for fmt in ("qcow2", "raw"):
            if (found := self.folder / f"{device}.{fmt}").exists():
                return found
        raise AssertionError(device)

    def add_disk(self, device: str, fmt: str = "qcow2", size: int = DISK_BYTES) -> None:
        path = make_image(self.folder / f"{device}.{fmt}", fmt, bytes(size))
        self.content[device] = bytearray(size)
        flags = 3 if self.domain.isActive() else 2  # live, and in the definition
        self.domain.attachDeviceFlags(disk_xml(device, path, fmt), flags)

    def _qdev(self, device: str) -> str:
        found = self._monitor('{"execute":"query-block"}', 0)
        for entry in json.loads(found)["return"]:
            place = entry.get("inserted", {}).get("image", {}).get("filename", "")
            if Path(place).stem == device or entry["qdev"].split("/")[-2:-1] == [device]:
                return str(entry["qdev"])
        raise AssertionError(f"no {device} in {found}")


@cache
def _qemu_binding() -> Any:
    """The monitor behind libvirt's back: only tests want it. Debian has it beside the binding itself."""
    library()
    sys.path.append(SYSTEM_FOLDERS[0])
    try:
        return importlib.import_module("libvirt_qemu")
    finally:
        sys.path.remove(SYSTEM_FOLDERS[0])


def make_image(path: Path, fmt: str, data: bytes) -> Path:
    raw = path.with_suffix(".tmp")
    raw.write_bytes(data)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", fmt, raw, path], check=True)
    raw.unlink()
    return path


def disk_xml(device: str, path: Path, fmt: str) -> str:
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='{fmt}'/><source file='{path}'/>"
        f"<target dev='{device}' bus='virtio'/></disk>"
    )


def domain_xml(name: str, disks: str, extra: str = "", devices: str = "", boot: str = "", memory_mib: int = 64) -> str:
    return f"""<domain type='qemu'><name>{name}</name>{extra}<memory unit='MiB'>{memory_mib}</memory><vcpu>1</vcpu>
      <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os><features><acpi/></features>
      <on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>
      <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}
      <controller type='pci' index='0' model='pcie-root'/>
      <controller type='pci' model='pcie-root-port'/><controller type='pci' model='pcie-root-port'/>
      <controller type='pci' model='pcie-root-port'/><controller type='pci' model='pcie-root-port'/>
      <controller type='pci' model='pcie-root-port'/><controller type='pci' model='pcie-root-port'/>
      <memballoon model='none'/>{devices}</devices></domain>"""


@contextmanager
def guest(
    hypervisor: Hypervisor,
    formats: Mapping[str, str],
    *,
    folder: Path | None = None,
    start: bool = True,
    extra: str = "",
    devices: str = "",
    size: int = DISK_BYTES,
) -> Iterator[Guest]:
    """A machine with disks of these formats by device, each with some content, until the block ends."""
    name = f"g{uuid.uuid4().hex[:8]}"
    place = folder or hypervisor.folder / name
    place.mkdir(exist_ok=True)
    numbers = random.Random(name)
    content = {device: bytearray(numbers.randbytes(size // 4) + bytes(size - size // 4)) for device in formats}
    disks = "".join(
        disk_xml(device, make_image(place / f"{device}.{fmt}", fmt, bytes(content[device])), fmt)
        for device, fmt in formats.items()
    )
    domain = hypervisor.connection.defineXML(domain_xml(name, disks, extra, devices))
    if start:
        domain.create()
    made = Guest(hypervisor=hypervisor, name=name, folder=place, domain=domain, content=content, numbers=numbers)
    try:
        yield made
    finally:
        remove_domain(hypervisor, name)


def remove_domain(hypervisor: Hypervisor, name: str) -> None:
    lib = library()
    domain = hypervisor.connection.lookupByName(name)
    if domain.isActive():
        domain.destroy()
    domain.undefineFlags(
        lib.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | lib.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | lib.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    )


@dataclass(kw_only=True)
class Kept:
    """What a vault would hold: by disk id the bytes of the last committed backup, and its token."""

    ref: SourceRef
    content: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    driver: LibvirtDriver = field(default_factory=LibvirtDriver)

    def open(self, **wanted: Any) -> MachinePoint:
        return self.driver.open_machine(self.ref, MachineWanted(**{"parent_tokens": dict(self.tokens), **wanted}))

    def read(self, point: MachinePoint) -> tuple[dict[str, bytes], dict[str, int]]:
        """Content by disk id, and bytes that were really read by device."""
        found, read = {}, {}
        for disk in point.disks:
            data = bytearray(self.content.get(disk.disk.id, b"").ljust(disk.stream.size, b"\0")[: disk.stream.size])
            read[disk.disk.name] = at = 0
            for offset, length, kind in disk.stream.extents():
                assert offset == at
                at += length
                if kind == ExtentKind.ZERO:
                    data[offset:at] = bytes(length)
                if kind == ExtentKind.DATA:
                    read[disk.disk.name] += length
                    for start in range(offset, at, READ_BYTES):
                        view = memoryview(data)[start : min(at, start + READ_BYTES)]
                        assert disk.stream.read_into(start, view) == len(view)
            assert at == disk.stream.size
            found[disk.disk.id] = bytes(data)
        return found, read

    def commit(self, point: MachinePoint, content: Mapping[str, bytes]) -> None:
        """Rows first, as the service does it."""
        self.content |= content
        self.tokens |= {disk.disk.id: disk.token for disk in point.disks}
        self.names |= {disk.disk.name: disk.disk.id for disk in point.disks}
        point.commit()

    def back_up(self, **wanted: Any) -> tuple[dict[str, int], dict[str, str | None]]:
        """A whole backup: bytes read and the reason of a full one, both by device."""
        with self.open(**wanted) as point:
            content, read = self.read(point)
            reasons = {disk.disk.name: disk.full_reason for disk in point.disks}
            self.commit(point, content)
        return read, reasons

    def of(self, device: str) -> bytes:
        return self.content[self.names[device]]
