"""The agent as it travels to a host that has none: our own modules and what they import, as this server has them.

    ssh      starts the host's python3 with BOOT, which says what it is, or the shell says that there is none
    server   sends length u64 and a tar, or hangs up
    BOOT     unpacks it, imports it, removes what it unpacked, and speaks the protocol of agents from there on

Some of it is machine code, so host and server need the same Python, processor and C library.
"""

import base64
import functools
import io
import platform
import sys
import tarfile
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

OURS = ("agent", "base", "engine", "sources")
OTHERS = (
    *("blake3", "cryptography", "msgpack", "msgspec", "pyfastcdc", "structlog", "zstandard"),
    *("_cffi_backend", "typing_extensions"),
)
LEFT_OUT = ("zstandard/_cffi",)  # the same again, for another Python
MARK = b"strongroom-host "  # before what BOOT says; a shell's start files may have said something else before

# Runs on whatever Python the host has, so it is written for an old one. One line of ours is all that stdout gets.
BOOT = r"""
import json, os, platform, shutil, sys
out = os.dup(1)
os.dup2(2, 1)
facts = {"python": list(sys.version_info[:2]), "kind": platform.python_implementation(),
         "machine": platform.machine(), "libc": platform.libc_ver()[0], "uid": os.geteuid()}
os.write(out, ("\nstrongroom-host " + json.dumps(facts) + "\n").encode())
def read(size):
    data = bytearray()
    while len(data) < size:
        got = os.read(0, min(1 << 20, size - len(data)))
        if not got:
            sys.exit(0)
        data += got
    return bytes(data)
data = read(int.from_bytes(read(8), "big"))
import io, tarfile, tempfile
NAME = "strongroom-agent-"
place = None
for one in ("/dev/shm", "/run", "/var/tmp", "/tmp"):
    try:
        fit = os.access(one, os.W_OK | os.X_OK) and not os.statvfs(one).f_flag & getattr(os, "ST_NOEXEC", 8)
        fit = fit and os.statvfs(one).f_bavail * os.statvfs(one).f_frsize > 20 * len(data)
    except OSError:
        fit = False
    if fit:
        place = one
        break
if place is None:
    sys.exit("strongroom: no folder of the host takes programs: /dev/shm, /run, /var/tmp and /tmp are full or noexec")
folder = tempfile.mkdtemp(prefix=NAME, dir=place)
now = os.lstat(folder).st_mtime
for name in os.listdir(place):
    old = os.path.join(place, name)
    try:
        info = os.lstat(old)
        if name.startswith(NAME) and info.st_uid == os.geteuid() and info.st_mtime < now - 3600:
            shutil.rmtree(old)
    except OSError:
        pass
try:
    tarfile.open(fileobj=io.BytesIO(data), mode="r:gz").extractall(folder)
    del data
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    from strongroom.agent.visit import visit
finally:
    shutil.rmtree(folder, ignore_errors=True)
visit(0, out)
"""


def command() -> str:
    """What the host's shell is given: fixed, and quoted for every shell. 127: the host has no such Python."""
    ours = "python" + ".".join(map(str, sys.version_info[:2]))
    boot = base64.b64encode(BOOT.encode()).decode("ascii")
    find = f"p=$(command -v {ours} || command -v python3) || exit 127"
    return f'exec /bin/sh -c \'{find}; exec "$p" -I -c "import base64;exec(base64.b64decode(\\"{boot}\\"))"\''


def needs() -> dict[str, object]:
    """What a host must say of itself, as BOOT says it."""
    return {
        "python": list(sys.version_info[:2]),
        "kind": platform.python_implementation(),
        "machine": platform.machine(),
        "libc": platform.libc_ver()[0],
    }


@functools.lru_cache(maxsize=1)
def bundle() -> bytes:
    """The tar, gzipped: about 10 MB, kept for the life of the process."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as tar:
        home = Path(_spec("strongroom").origin or "").parent
        tar.add(home / "__init__.py", "strongroom/__init__.py", filter=_plain)
        for room in OURS:
            _add(tar, home / room, f"strongroom/{room}")
        for name in OTHERS:
            spec = _spec(name)
            file = Path(spec.origin or "")
            if spec.submodule_search_locations:
                _add(tar, file.parent, name)
            else:
                tar.add(file, file.name, filter=_plain)
    return out.getvalue()


def _spec(name: str) -> ModuleSpec:
    found = find_spec(name)
    assert found is not None, name
    return found


def _add(tar: tarfile.TarFile, folder: Path, name: str) -> None:
    for file in sorted(folder.rglob("*")):
        inside = f"{name}/{file.relative_to(folder)}"
        if file.suffix in (".py", ".so") and not inside.startswith(LEFT_OUT):
            tar.add(file, inside, filter=_plain)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Names of users of this server are nobody's business."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o644
    return info
