"""Reading all of a QEMU machine's disk, as a full backup does, beside `qemu-img convert` of the same image to nowhere.

    python -m bench.machine_reads [--mib 1024] [--repeat 3] [--format qcow2] [--dir .bench]

One disk of noise, in a QEMU without a guest. Four readers take turns, each with the image dropped from the page
cache before ("cold") and left in it ("warm"):

    image      qemu-img convert IMAGE to null-co, with the machine stopped: nothing is copied out of QEMU's block layer
    export     qemu-img convert of QEMU's own NBD export of the disk to null-co: the same way as ours, in C
    driver     the driver's point, every byte copied to memory as the engine reads it: of the image, proven afterwards
    over nbd   the same with scratch files in memory (tmpfs), where nothing can be proven: all of it comes over NBD
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from strongroom.base.streams import ExtentKind
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import MachineWanted
from strongroom.sources.machines.qemu import QemuDriver
from strongroom.sources.machines.qmp import QmpClient
from strongroom.sources.open import driver_for

MIB = 1 << 20
BUFFER_BYTES = MIB  # as the engine reads: 16 blocks at once


class Bench:
    def __init__(self, folder: Path, size: int, form: str) -> None:
        self.folder = folder
        self.size = size
        self.format = form
        self.image = folder / f"disk.{form}"
        raw = folder / "noise"
        with open(raw, "wb") as file:
            file.writelines(os.urandom(MIB) for _ in range(size // MIB))
        subprocess.run(["qemu-img", "convert", "-O", form, raw, self.image], check=True)
        raw.unlink()

    def drop(self) -> None:
        fd = os.open(self.image, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)

    def convert(self, source: str) -> None:
        """To a target that takes everything and keeps nothing."""
        target = "json:" + json.dumps({"driver": "null-co", "size": self.size})
        command = ["qemu-img", "convert", "-n", "--target-image-opts"]
        command += ["-f", self.format] if source == str(self.image) else []
        subprocess.run([*command, source, _options(target)], check=True)

    def machine(self) -> "subprocess.Popen[bytes]":
        node = {"driver": self.format, "node-name": "disk", "file": {"driver": "file", "filename": str(self.image)}}
        command = ["qemu-system-x86_64", "-accel", "tcg", "-S", "-m", "32", "-display", "none", "-nodefaults"]
        command += ["-qmp", f"unix:{self.folder / 'qmp'},server=on,wait=off"]
        command += ["-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=disk,id=vd0"]
        process = subprocess.Popen(command)
        while not (self.folder / "qmp").exists():
            time.sleep(0.02)
        return process

    def read_image(self) -> float:
        began = time.monotonic()
        self.convert(str(self.image))
        return time.monotonic() - began

    def read_export(self) -> float:
        process = self.machine()
        try:
            with QmpClient.connect(str(self.folder / "qmp")) as monitor:
                path = self.folder / "nbd"
                monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(path)}}})
                export = {"type": "nbd", "id": "bench", "node-name": "disk", "name": "disk"}
                monitor.execute("block-export-add", export)
                began = time.monotonic()
                self.convert(f"nbd+unix:///disk?socket={path}")
                return time.monotonic() - began
        finally:
            process.kill()
            process.wait()
            for name in ("qmp", "nbd"):
                (self.folder / name).unlink(missing_ok=True)

    def read_point(self, scratch: Path | None = None) -> float:
        process = self.machine()
        ref = SourceRef(
            resource_id="bench",
            type="OS::Nova::Server",
            path=f"qemu:{self.folder / 'qmp'}?scratch={scratch or self.folder}".encode(),
        )
        try:
            buffer = memoryview(bytearray(BUFFER_BYTES))
            with QemuDriver(partial(driver_for, "OS::Cinder::Volume")).open_machine(ref, MachineWanted()) as point:
                began = time.monotonic()
                (disk,) = point.disks
                for extent in disk.stream.extents():
                    if extent.kind == ExtentKind.DATA:
                        for at in range(extent.offset, extent.offset + extent.length, BUFFER_BYTES):
                            disk.stream.read_into(at, buffer[: min(BUFFER_BYTES, extent.offset + extent.length - at)])
                return time.monotonic() - began
        finally:
            process.kill()
            process.wait()
            (self.folder / "qmp").unlink(missing_ok=True)


def _options(target: str) -> str:
    """`--target-image-opts` wants key=value."""
    value = json.loads(target.removeprefix("json:"))
    return ",".join(f"{key}={each}" for key, each in value.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--format", choices=("qcow2", "raw"), default="qcow2")
    parser.add_argument("--dir", type=Path, default=Path(".bench"))
    asked = parser.parse_args()
    asked.dir.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.dir.resolve(), prefix="m-") as folder:
        bench = Bench(Path(folder), asked.mib * MIB, asked.format)
        readers: dict[str, Callable[[], float]] = {
            "image": bench.read_image,
            "export": bench.read_export,
            "driver": bench.read_point,
            "over nbd": partial(bench.read_point, Path("/dev/shm")),
        }
        found: dict[tuple[str, str], list[float]] = {}
        for _ in range(asked.repeat):
            for cache in ("cold", "warm"):
                for name, read in readers.items():
                    if cache == "cold":
                        bench.drop()
                    found.setdefault((name, cache), []).append(asked.mib * MIB / 1e6 / read())
    print(f"{'reader':<8} {'cache':<6} {'MB/s':>8} {'best':>8} {'of image':>9} {'best':>6} {'of export':>10}")
    for (name, cache), speeds in found.items():
        speed, best = statistics.median(speeds), max(speeds)
        image, export = (statistics.median(found[other, cache]) for other in ("image", "export"))
        ratios = f"{speed / image:>9.2f} {best / max(found['image', cache]):>6.2f} {speed / export:>10.2f}"
        print(f"{name:<8} {cache:<6} {speed:>8.0f} {best:>8.0f} {ratios}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
