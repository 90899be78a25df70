"""An image behind `qemu-nbd`, to this process alone; and `qemu-img` for what is in its header.

(`sources/qemu_tools.py` does so for descriptors; it stands above the machines' NBD client and cannot be had here.)
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

from strongroom.base.errors import SourceError, SourceGone, TargetBusy
from strongroom.sources.machines.nbd import NbdClient
from strongroom.sources.machines.nbd_wire import UnixAddress

START_S_MAX, END_S_MAX, TOOL_S_MAX = 30.0, 60.0, 120.0
_STEP_S = 0.01


class ServedImage:
    """`client` is a BlockStream and a BlockTarget. The server ends with the connection, so also when we die."""

    def __init__(self, client: NbdClient, process: "subprocess.Popen[bytes]", name: str) -> None:
        self.client = client
        self._process = process
        self._name = name

    def finish(self) -> None:
        """Flush, and wait until the image is closed: everything is in it on return. Raises SourceError."""
        self.client.flush()
        self.client.close()
        try:
            code = self._process.wait(END_S_MAX)
        except subprocess.TimeoutExpired as err:
            raise SourceError(reason="qemu-nbd does not let go of the image. Run the task again.") from err
        if code:
            raise SourceError(reason="qemu-nbd could not finish the image. Run the task again.", detail=self._name)


def image_node(path: str, image_format: str, *, share: bool) -> str:
    """An image as an argument of QEMU's tools, its format never guessed.

    share: only looked at, and without a lock, so that whoever starts the machine meanwhile is not kept from it.
    """
    node: dict[str, object] = {"driver": image_format, "file": {"driver": "file", "filename": path}}
    return "json:" + json.dumps(node | ({"force-share": True} if share else {}))


@contextlib.contextmanager
def served(node: str, *, writable: bool = False, bitmap: str | None = None) -> Iterator[ServedImage]:
    """Until the end of the block. bitmap: its clean ranges are SAME. Raises SourceError."""
    options = ["--discard=unmap"] if writable else ["--read-only"]
    options += ["--bitmap", bitmap] if bitmap is not None else []
    with contextlib.ExitStack() as ending:
        folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="strongroom-"))
        complaint = ending.enter_context(tempfile.TemporaryFile())
        socket = os.path.join(folder, "nbd")
        try:
            process = subprocess.Popen(
                ["qemu-nbd", *options, f"--socket={socket}", node],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaint,
            )
        except OSError as err:
            raise _missing("qemu-nbd") from err
        ending.callback(_end, process)
        give_up_s = time.monotonic() + START_S_MAX
        while not os.path.exists(socket):
            if process.poll() is not None or time.monotonic() > give_up_s:
                complaint.seek(0)
                raise _failed("qemu-nbd", complaint.read(4096))
            time.sleep(_STEP_S)
        client = ending.enter_context(_connect(socket, bitmap, give_up_s))
        yield ServedImage(client, process, node)


def run_tool(command: Sequence[str]) -> bytes:
    """The output of one of QEMU's tools. Raises SourceError."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=TOOL_S_MAX, check=False)
    except OSError as err:
        raise _missing(command[0]) from err
    except subprocess.TimeoutExpired as err:
        raise SourceError(reason=f"{command[0]} did not end in {TOOL_S_MAX:.0f} s. Run the task again.") from err
    if done.returncode:
        raise _failed(command[0], done.stderr)
    return done.stdout


def _connect(socket: str, bitmap: str | None, give_up_s: float) -> NbdClient:
    while True:
        try:
            return NbdClient.connect(UnixAddress(path=socket), "", bitmap=bitmap)
        except SourceGone:  # bound, and about to listen
            if time.monotonic() > give_up_s:
                raise
            time.sleep(_STEP_S)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """It has no client any more, or never had one."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S_MAX)
            return
        process.kill()
        process.wait()


def _missing(tool: str) -> SourceError:
    return SourceError(reason=f"{tool} is not installed on this worker. Install it (qemu-utils).")


def _failed(tool: str, said: bytes) -> SourceError:
    text = " ".join(said.decode("utf-8", "replace").split())[:400]
    if " lock" in text:
        return TargetBusy(reason="Another program has the disk open. Stop what uses it.", detail=text)
    return SourceError(reason=f"{tool} could not open the disk's image. The log tells more.", detail=text)
