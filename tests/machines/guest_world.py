"""A booted guest under TCG for the long tests: Debian's cloud kernel, and a few files of this machine as its system.

`make test-sources` fetches the kernel into .guest; the rest is built here.
"""

import gzip
import os
import re
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from nbd_world import wait_until
from qemu_world import Machine

ROOT = Path(__file__).resolve().parents[2]
KERNEL = Path(os.environ.get("STRONGROOM_GUEST_KERNEL", ROOT / ".guest"))
HERE = Path(__file__).resolve().parent / "guest"
DISK_BYTES = 96 << 20
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
BOOT_S_MAX = 240.0  # TCG on a machine with other work


class Archive:
    """An initramfs: cpio in its new ASCII form."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._number = 0
        self._folders = {""}

    def add(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            self._folders.add(folder)
            self.add(folder, stat.S_IFDIR | 0o755)
        self._number += 1
        name = path.encode() + b"\0"
        numbers = (self._number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        self._file.write(b"070701" + b"".join(b"%08x" % number for number in numbers) + name)
        self._file.write(bytes(-(110 + len(name)) % 4) + content + bytes(-len(content) % 4))

    def end(self) -> None:
        self._folders.add("")
        self.add("TRAILER!!!", 0)


def module_order(names: Iterable[str], files: dict[str, Path]) -> list[Path]:
    """Modules after those that they need; what is built in has no file."""
    order: list[Path] = []

    def visit(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in order:
            return
        found = re.search(rb"depends=([^\0]*)\0", path.read_bytes())
        for needed in found.group(1).decode().split(",") if found else ():
            visit(needed)
        order.append(path)

    for name in names:
        visit(name)
    return order


def kernel() -> Path:
    found = sorted((KERNEL / "boot").glob("vmlinuz-*"))
    assert found, "there is no kernel for guests: run `make test-sources`, or .ci/guest-kernel .guest"
    return found[-1]


def build_initramfs(path: Path) -> Path:
    files = {each.stem.replace("-", "_"): each for each in (KERNEL / "lib" / "modules").rglob("*.ko")}
    order = module_order(MODULES, files)
    with gzip.open(path, "wb", compresslevel=1) as file:
        archive = Archive(file)  # type: ignore[arg-type]
        for folder in ("proc", "sys", "dev", "tmp", "etc", "run"):
            archive.add(f"{folder}/.keep", stat.S_IFREG | 0o644)
        archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        archive.add("init", stat.S_IFREG | 0o755, (HERE / "init.sh").read_bytes())
        archive.add("etc/qemu/fsfreeze-hook", stat.S_IFREG | 0o755, (HERE / "fsfreeze-hook").read_bytes())
        archive.add("bin/busybox", stat.S_IFREG | 0o755, Path("/bin/busybox").read_bytes())
        archive.add("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
        agent = Path("/usr/sbin/qemu-ga")
        shown = subprocess.run(["ldd", agent], capture_output=True, text=True, check=True).stdout
        for each in [agent, *map(Path, re.findall(r"(/\S+\.so\S*)", shown))]:
            archive.add(str(each).lstrip("/"), stat.S_IFREG | 0o755, each.read_bytes())
        for module in order:
            archive.add(f"modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes())
        archive.add("modules/order", stat.S_IFREG | 0o644, "\n".join(each.name for each in order).encode())
        archive.end()
    return path


class Guest(Machine):
    """Booted, with file systems on its disks, writing all the time."""

    firmware = b""  # QEMU's own

    def __init__(self, folder: Path, *, hooks: bool = False) -> None:
        disks = {}
        for name in ("vd0", "vd1"):
            raw = folder / f"{name}.raw"
            with open(raw, "wb") as file:
                file.truncate(DISK_BYTES)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", raw], check=True)
            disks[name] = folder / f"{name}.qcow2"
            subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, disks[name]], check=True)
            raw.unlink()
        self.console = folder / "console.log"
        self.agent = folder / "agent"
        super().__init__(
            folder,
            disks,
            *("-m", "192", "-no-reboot", "-nic", "none", "-kernel", str(kernel())),
            *("-initrd", str(build_initramfs(folder / "initramfs"))),
            *("-append", f"console=ttyS0 quiet panic=-1{' hooks' if hooks else ''}"),
            *("-serial", f"file:{self.console}", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,path={self.agent},server=on,wait=off,id=agent"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        )

    def start(self) -> None:
        self.agent.unlink(missing_ok=True)
        super().start()
        wait_until(lambda: self.said("READY") and self.count() > 2, "the guest writes", BOOT_S_MAX)
        assert not self.said("NO-"), self.console.read_text(errors="replace")

    def said(self, word: str) -> bool:
        return self.console.exists() and word in self.console.read_text(errors="replace")

    def count(self) -> int:
        """What the writer has come to."""
        found = re.findall(r"COUNT (\d+)", self.console.read_text(errors="replace"))
        return int(found[-1]) if found else 0

    def wait_for_writes(self, how_many: int = 3, seconds: float = 120.0) -> None:
        target = self.count() + how_many
        wait_until(lambda: self.count() >= target, "the guest writes on", seconds)


class Looked:
    """What a disk of the guest holds: clean: its journal needs no replay. repaired: more than a replay was needed."""

    def __init__(self, content: bytes, folder: Path) -> None:
        image = folder / "looked.raw"
        image.write_bytes(content)
        superblock = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
        self.clean = "needs_recovery" not in superblock
        if not self.clean:  # the journal, as the kernel does it at the next mount; nothing else
            subprocess.run(["e2fsck", "-E", "journal_only", "-p", image], capture_output=True)
        checked = subprocess.run(["e2fsck", "-f", "-n", image], capture_output=True, text=True)
        self.sound = checked.returncode == 0
        self.complaint = checked.stdout
        self.count = int(self._cat(image, "/count") or 0)
        self.hook = self._cat(image, "/hook").split()
        image.unlink()

    @staticmethod
    def _cat(image: Path, path: str) -> str:
        shown = subprocess.run(["debugfs", "-R", f"cat {path}", image], capture_output=True, text=True)
        return shown.stdout.strip()
