"""A worker as a process of its own, that a test can kill or stop where it hurts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lifeline import end_with_starter

from strongroom.sources.base import SourceRef

ROOT = Path(__file__).resolve().parents[2]

# Says where it is and stays there: with the guest held still, or with a point open.
SCRIPT = """
import sys, time
from functools import partial
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import MachineWanted
from strongroom.sources.machines.qemu import QemuDriver
from strongroom.sources.machines.qemu_point import QemuPoint
from strongroom.sources.open import driver_for

def stay():
    print("here", flush=True)
    time.sleep(3600)

if sys.argv[1] == "held":
    switch = QemuPoint._switch
    QemuPoint._switch = lambda point: (switch(point), stay())
ref = SourceRef(resource_id=sys.argv[2], type="OS::Nova::Server", path=sys.argv[3].encode())
with QemuDriver(partial(driver_for, "OS::Cinder::Volume")).open_machine(ref, MachineWanted()) as point:
    for disk in point.disks:
        for extent in disk.stream.extents():
            disk.stream.read_into(extent.offset, memoryview(bytearray(min(extent.length, 65536))))
            break
    stay()
"""


class Worker:
    """`end` sends it a signal; its helper is the process that lets guests go."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @property
    def helper(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(children) == 1, children
        return int(children[0])

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()


@contextmanager
def worker(ref: SourceRef, where: str) -> Iterator[Worker]:
    """Started, and arrived at `where`: "held" or "reading"."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, where, ref.resource_id, os.fsdecode(ref.path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"here\n"
        yield Worker(process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
