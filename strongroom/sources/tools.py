"""Running a tool of the system on a disk or a file system: where it is, what it said, and for how long at most.

Messages of the tools are for operators, never for tenants.
"""

import shutil
from collections.abc import Sequence
from typing import BinaryIO

from strongroom.base.errors import SourceDenied, SourceError

TOOL_S_MAX = 120.0  # of one run: headers, bitmaps and maps, never content
OUTPUT_BYTES_MAX = 4 << 20  # of one tool; 65 535 bitmaps fit
PACKAGES = {  # as Debian calls what a tool comes with
    "qemu-nbd": "qemu-utils",
    "qemu-img": "qemu-utils",
    "rbd": "ceph-common",
    "lvm": "lvm2",
    "zfs": "zfsutils-linux",
    "thin_delta": "thin-provisioning-tools",
}


def run_tool(arguments: Sequence[str], fds: Sequence[int] = (), *, output_bytes_max: int = OUTPUT_BYTES_MAX) -> str:
    """The output of one run of a tool, cut off at a limit. Raises SourceError with its complaint as the detail."""
    import subprocess  # with the next, 5 ms of each start, most of which run no tool
    import tempfile

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaint:
        try:
            subprocess.run(
                [tool(arguments[0]), *arguments[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=complaint,
                pass_fds=fds,
                timeout=TOOL_S_MAX,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as err:
            require_free(complaint_of(complaint))
            raise SourceError(
                reason=f"{arguments[0]} could not do its work on the disk. Run the task again; the log tells more.",
                detail=f"{' '.join(arguments[:3])}: {err}; {complaint_of(complaint)}",
            ) from err
        out.seek(0)
        return out.read(output_bytes_max).decode("utf-8", "replace")


def tool(name: str) -> str:
    """Where a tool is. Raises SourceError with what to install."""
    found = shutil.which(name)
    if found is None:
        raise SourceError(reason=f"{name} is not installed on this worker. Install it ({PACKAGES.get(name, name)}).")
    return found


def require_free(complaint: str) -> None:
    """Raises SourceDenied when a tool says that another QEMU holds the lock of the disk."""
    if " lock" in complaint:
        raise SourceDenied(
            reason="Another program has the disk open. Register the machine that does, or stop it for this task.",
            detail=complaint,
        )


def complaint_of(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(2000).decode("utf-8", "replace").strip()
