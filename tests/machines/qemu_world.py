"""Real QEMU for tests: a machine without a guest, whose disks are written through its monitor, and what they hold."""

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifeline import end_with_starter
from nbd_world import answers, wait_until

from strongroom.base.streams import ExtentKind
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import MachinePoint, MachineWanted
from strongroom.sources.machines.nbd_wire import UnixAddress
from strongroom.sources.machines.qmp import QmpClient

MIB = 1 << 20
DISK_BYTES = 16 * MIB
# Firmware that halts at the first instruction, so that a machine without a guest costs no CPU: cli; hlt; jmp to hlt.
HALT = bytes(0xFFF0) + b"\xfa\xf4\xeb\xfd".ljust(16, b"\0")
RESOURCE = "6f3c1a52-0000-4000-8000-00000000aaaa"


def make_image(path: Path, content: bytes) -> Path:
    """A qcow2 image, or a raw one where the name says so."""
    raw = path.with_suffix(".tmp")
    raw.write_bytes(content)
    command = ["qemu-img", "convert", "-f", "raw", "-O", "raw" if path.suffix == ".raw" else "qcow2", raw, path]
    subprocess.run(command, check=True)
    raw.unlink()
    return path


def image_bytes(path: Path, folder: Path) -> bytes:
    """What an image holds that nobody has open."""
    raw = folder / "compared.raw"
    fmt = "raw" if path.suffix == ".raw" else "qcow2"
    subprocess.run(["qemu-img", "convert", "-f", fmt, "-O", "raw", path, raw], check=True)
    content = raw.read_bytes()
    raw.unlink()
    return content


class Machine:
    """A QEMU with two monitors: `path` for the service, the other for the test. Disks are vd0, vd1, ... in order.

    content: by disk, what it holds, kept up to date by `write`. firmware: what runs at power-on.
    """

    firmware = HALT

    def __init__(self, folder: Path, disks: Mapping[str, Path], *options: str) -> None:
        self.folder = folder
        self.disks = dict(disks)
        self.path = folder / "qmp"
        self.options = options
        self.content = {name: bytearray(DISK_BYTES) for name in disks}
        self.log = folder / "qemu.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: QmpClient | None = None

    @classmethod
    def with_noise(cls, folder: Path, *formats: str, options: Sequence[str] = ()) -> "Machine":
        """Started, a disk for each format, each with 4 MiB of its own at 1 MiB."""
        content = {f"vd{at}": bytearray(DISK_BYTES) for at in range(len(formats))}
        disks = {}
        for at, fmt in enumerate(formats):
            content[f"vd{at}"][MIB : 5 * MIB] = bytes([at + 1]) * (4 * MIB)
            disks[f"vd{at}"] = make_image(folder / f"vd{at}.{fmt}", bytes(content[f"vd{at}"]))
        machine = cls(folder, disks, *options)
        machine.content = content
        machine.start()
        return machine

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def ref(self, scratch: Path | None = None, resource_id: str = RESOURCE) -> SourceRef:
        options = f"?scratch={scratch or self.folder}"
        path = f"qemu:{self.path}{options}".encode()
        return SourceRef(resource_id=resource_id, type="OS::Nova::Server", path=path)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        for name in ("qmp", "qmp-test"):
            (self.folder / name).unlink(missing_ok=True)
        command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "32", "-display", "none", "-nodefaults"]
        for name in ("qmp", "qmp-test"):
            command += ["-qmp", f"unix:{self.folder / name},server=on,wait=off"]
        if self.firmware:
            (self.folder / "firmware").write_bytes(self.firmware)
            command += ["-bios", str(self.folder / "firmware")]
        for name, path in self.disks.items():
            node = self.node(name, path)
            command += ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive=node-{name},id={name}"]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [*command, *self.options],
                stdout=log,
                stderr=log,
                preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
            )
        process = self._process
        wait_until(
            lambda: process.poll() is not None or answers(UnixAddress(path=str(self.folder / "qmp-test"))),
            "QEMU starts",
        )
        assert process.poll() is None, self.log.read_text()
        self._monitor = QmpClient.connect(str(self.folder / "qmp-test"))

    @staticmethod
    def node(name: str, path: Path) -> dict[str, Any]:
        fmt = "raw" if path.suffix == ".raw" else "qcow2"
        return {"driver": fmt, "node-name": f"node-{name}", "file": {"driver": "file", "filename": str(path)}}

    def qmp(self, command: str, **arguments: Any) -> Any:
        assert self._monitor is not None
        return self._monitor.execute(command, {key.replace("_", "-"): value for key, value in arguments.items()})

    def hmp(self, line: str) -> str:
        return str(self.qmp("human-monitor-command", command_line=line))

    def io(self, disk: str, command: str) -> None:
        """A request as the guest's device makes it. Its errors stand in the log."""
        self.hmp(f'qemu-io -d /machine/peripheral/{disk}/virtio-backend "{command}"')

    def write(self, disk: str, offset: int, length: int, value: int) -> None:
        self.io(disk, f"write -P {value} {offset} {length}")
        self.content[disk][offset : offset + length] = bytes([value]) * length

    def failed_writes(self) -> int:
        return self.log.read_text().count("failed")

    def status(self) -> str:
        return str(self.qmp("query-status")["status"])

    def ours(self) -> list[str]:
        """Whatever of the service is in QEMU, but for its bitmaps of changes."""
        nodes = self.qmp("query-named-block-nodes", flat=True)
        found = [each["node-name"] for each in nodes] + [each["id"] for each in self.qmp("query-block-exports")]
        found += [bitmap.get("name", "") for each in nodes for bitmap in each.get("dirty-bitmaps") or ()]
        return sorted({name for name in found if name.startswith("strongroom.") and ".b." not in name})

    def bitmaps(self, disk: str) -> list[str]:
        (entry,) = (each for each in self.qmp("query-block") if each["qdev"].endswith(f"/{disk}/virtio-backend"))
        return [each["name"] for each in entry["inserted"].get("dirty-bitmaps") or ()]

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def quit(self) -> None:
        """As a machine is shut down."""
        assert self._process is not None and self._monitor is not None
        self.qmp("quit")
        self._process.wait(60)
        self._monitor.close()
        self._monitor = None

    def kill(self) -> None:
        """SIGKILL."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def read_point(point: MachinePoint, before: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """Content of all disks, with what is the same taken from `before`."""
    found = {}
    for disk in point.disks:
        content = bytearray(disk.stream.size)
        expected = 0
        for offset, length, kind in disk.stream.extents():
            assert offset == expected and length > 0
            expected += length
            if kind == ExtentKind.SAME:
                assert disk.full_reason is None and before is not None
                content[offset:expected] = before[disk.disk.name][offset:expected]
            elif kind == ExtentKind.DATA:
                for at in range(offset, expected, 4 * MIB):
                    with memoryview(content) as view:
                        disk.stream.read_into(at, view[at : min(at + 4 * MIB, expected)])
        assert expected == disk.stream.size
        found[disk.disk.name] = bytes(content)
    return found


def tokens(point: MachinePoint) -> dict[str, bytes]:
    return {disk.disk.id: disk.token for disk in point.disks}


def reasons(point: MachinePoint) -> dict[str, str | None]:
    return {disk.disk.name: disk.full_reason for disk in point.disks}


def wanted(parents: Mapping[str, bytes] | None = None, **more: Any) -> MachineWanted:
    return MachineWanted(parent_tokens=parents or {}, **more)


def writing(machine: Machine, disk: str, values: Sequence[int]) -> threading.Thread:
    """A thread that writes the same megabyte again and again, once a value."""
    thread = threading.Thread(target=lambda: [machine.write(disk, 2 * MIB, MIB, value) for value in values])
    thread.start()
    return thread
