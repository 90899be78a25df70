"""Running QEMU's tools on one disk: `qemu-nbd` to read or write it, `qemu-img` for its header and bitmaps.

A file is handed over as an open descriptor and opened by the tool through /proc/self/fd, so no name is looked up twice
and no name means anything to the tool. Messages of the tools are for operators, never for tenants.
"""

import contextlib
import fcntl
import json
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from strongroom.base.errors import SourceError, SourceGone
from strongroom.sources.machines.nbd import NbdClient
from strongroom.sources.machines.nbd_wire import UnixAddress
from strongroom.sources.tools import TOOL_S_MAX, complaint_of, require_free, run_tool, tool

START_S_MAX = 30.0  # until qemu-nbd listens
END_S_MAX = 5.0  # from the end of the connection to the end of qemu-nbd
STEP_S = 0.01  # between two looks whether qemu-nbd listens

_GETLK = struct.Struct("hhiqqi4x")
_WRITING = 101  # QEMU's lock byte of who may write


def is_written(fd: int) -> bool:
    """Whether a QEMU has this file open for writing; by the locks that QEMU itself goes by."""
    asked = _GETLK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, _WRITING, 1, 0)
    kind = _GETLK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return bool(kind != fcntl.F_UNLCK)


def qcow2_of(fd: int) -> str:
    """The image behind a descriptor, as an argument of a tool: it alone, whatever its header names."""
    node = {"driver": "file", "filename": f"/proc/self/fd/{fd}"}
    return "json:" + json.dumps({"driver": "qcow2", "backing": None, "file": node})


def image_info(fd: int) -> Mapping[str, Any]:
    """`qemu-img info` of a qcow2 image. Raises SourceError."""
    try:
        found = json.loads(run_tool(["qemu-img", "info", "--output=json", qcow2_of(fd)], [fd]))
    except ValueError as err:
        raise SourceError(reason="qemu-img tells nothing about the image. Check it with qemu-img check.") from err
    if not isinstance(found, dict):
        raise SourceError(reason="qemu-img tells nothing about the image. Check it with qemu-img check.")
    return found


class Serving:
    """A disk that qemu-nbd serves to this process alone, by `served`."""

    def __init__(self, client: NbdClient, process: subprocess.Popen[bytes], complaint: BinaryIO) -> None:
        self.client = client
        self._process = process
        self._complaint = complaint

    def finish(self) -> None:
        """Flush and end: on return the tool has closed the disk, and everything is in it. Raises SourceError."""
        self.client.flush()
        self.client.close()
        try:
            code = self._process.wait(TOOL_S_MAX)
        except subprocess.TimeoutExpired as err:
            raise SourceError(reason="qemu-nbd does not let go of the disk. Run the task again.") from err
        if code != 0:
            raise SourceError(
                reason="qemu-nbd could not finish the disk. Run the task again.", detail=complaint_of(self._complaint)
            )


@contextlib.contextmanager
def served(
    disk: str, fds: Sequence[int] = (), *, writable: bool = False, direct: bool = False, bitmap: str | None = None
) -> Iterator[Serving]:
    """Serve a disk until the end of the block; the tool ends with the connection, also when this process is killed.

    disk: as the tool takes it. direct: past all caches. bitmap: its clean ranges are SAME. Raises SourceError;
    SourceDenied when another QEMU has the disk open.
    """
    options = ["--discard=unmap", "--detect-zeroes=unmap"] if writable else ["--read-only"]
    options += ["--cache=none"] if direct else []
    options += ["--bitmap", bitmap] if bitmap is not None else []
    with contextlib.ExitStack() as ending:
        folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="strongroom-nbd-"))  # 0700: nobody else
        complaint = ending.enter_context(tempfile.TemporaryFile())
        path = f"{folder}/socket"
        process = subprocess.Popen(
            [tool("qemu-nbd"), *options, f"--socket={path}", disk],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaint,
            pass_fds=fds,
        )
        ending.callback(_end, process)
        try:
            client = _connect(process, path, bitmap, complaint)
        except BaseException:
            process.kill()  # nobody was connected, so it would wait for ever
            raise
        with client:
            yield Serving(client, process, complaint)


def _connect(process: subprocess.Popen[bytes], path: str, bitmap: str | None, complaint: BinaryIO) -> NbdClient:
    give_up_s = time.monotonic() + START_S_MAX
    while True:
        if os.path.exists(path):
            with contextlib.suppress(SourceGone):  # bound, and about to listen
                return NbdClient.connect(UnixAddress(path=path), "", bitmap=bitmap)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STEP_S)
            text = complaint_of(complaint)
            require_free(text)
            raise SourceError(reason="qemu-nbd could not open the disk. The log tells more.", detail=text)
        if time.monotonic() > give_up_s:
            raise SourceError(reason="qemu-nbd does not start. Run the task again.", detail=complaint_of(complaint))


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself when its client has left. Killed, it would leave a watch at a Ceph image, and whoever takes or
    removes a snapshot there waits ten seconds for its answer."""
    try:
        process.wait(END_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
