"""The demo's data: a folder of real files with everything odd that folders hold, and a real ext4 disk image.

Each is made, changed as its user would, and then damaged as a fault or a thief would. All of it lies in the demo's own
temporary folder.
"""

import os
import random
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from strongroom.base.units import KIB, MIB
from strongroom.cli.errors import CommandRefused

SEED = 20260  # the same data each time, so that two runs can be compared
FILES_MAX = 4000
FOLDER_BYTES_MAX = 96 * MIB
FILE_BYTES_MAX = 8 * MIB
IMAGE_BYTES = 256 * MIB
IMAGE_CONTENT_BYTES_MAX = 48 * MIB
SPARSE_BYTES = 64 * MIB
TOOL_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"  # where mkfs lives is not on every user's PATH


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Programs of e2fsprogs, by full path."""

    mkfs: str
    debugfs: str
    fsck: str


def find_tools() -> Tools:
    """Raises CommandRefused naming the package that is missing."""
    path = os.environ.get("PATH", os.defpath) + ":" + TOOL_FOLDERS
    found = {name: shutil.which(name, path=path) for name in ("mkfs.ext4", "debugfs", "e2fsck")}
    missing = [name for name, place in found.items() if place is None]
    if missing:
        raise CommandRefused(
            reason=f"The demo needs {', '.join(missing)}. Install e2fsprogs; `make demo` does it for you."
        )
    return Tools(mkfs=str(found["mkfs.ext4"]), debugfs=str(found["debugfs"]), fsck=str(found["e2fsck"]))


# --- the folder -----------------------------------------------------------------------------------------------------


def make_folder(root: Path) -> None:
    """Real files of this Python installation, and one of each thing that is hard to keep."""
    root.mkdir()
    _copy_real_files(root / "python", FILES_MAX, FOLDER_BYTES_MAX)
    _make_odd_names(root / "names")
    _make_links(root / "links")
    _make_files_with_holes(root / "holes")
    _make_attributes(root / "attributes")
    os.utime(root, ns=(0, 1_100_000_000_777_777_777))


def change_folder(root: Path) -> None:
    """A day's work: files edited, added, removed, moved; an attribute or two."""
    chance = random.Random(SEED)  # noqa: S311 -- reproducible data, no secret
    files = _regular_files(root / "python")
    for path in chance.sample(files, 25):
        with path.open("ab") as stream:
            stream.write(b"# edited\n" * chance.randrange(1, 200))
    for path in chance.sample([p for p in files if p.stat().st_size > 64 * KIB], 5):
        with path.open("r+b") as stream:
            stream.seek(chance.randrange(path.stat().st_size))
            stream.write(b"a page in the middle " * 20)
    for path in chance.sample(files, 20):
        path.unlink()
    new = root / "new"
    new.mkdir()
    for number in range(40):
        (new / f"note {number}.txt").write_bytes(chance.randbytes(chance.randrange(20_000)))
    (root / "names").rename(root / "names moved")
    (root / "links" / "to a file").unlink()
    (root / "links" / "to a file").symlink_to("../new/note 1.txt")
    (root / "attributes" / "mode").chmod(0o640)
    with (root / "holes" / "islands").open("r+b") as stream:
        stream.seek(40 * MIB)
        stream.write(b"a new island")


def damage_folder(root: Path) -> None:
    """Deleted, encrypted, cut short, replaced, locked out: and nothing of it shows in sizes or times alone."""
    chance = random.Random(SEED + 1)  # noqa: S311 -- reproducible data, no secret
    files = _regular_files(root / "python")
    for path in files[: len(files) // 3]:
        path.unlink()
    left = files[len(files) // 3 :]
    for path in chance.sample(left, 200):
        status = path.stat()
        path.write_bytes(chance.randbytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for path in chance.sample(left, 50):
        path.write_bytes(b"")
    for path in chance.sample(left, 20):
        path.unlink()
        path.symlink_to("/etc/passwd")
    shutil.rmtree(root / "links")
    shutil.rmtree(root / "new")
    (root / "attributes" / "mode").chmod(0o777)
    (root / "YOUR FILES ARE ENCRYPTED.txt").write_text("Pay.")


def _make_odd_names(root: Path) -> None:
    root.mkdir()
    folder = os.fsencode(root)
    odd = (
        b"latin1-\xe9\xff",
        "größe 🗄".encode(),
        "nfd-e\u0301".encode(),
        b"new\nline",
        b"tab\there",
        b" lead",
        b"trail ",
        b"-dash",
        b"back\\slash",
        b"quote\"'",
        b"a" * 255,
        b"*?[]",
        b"\x01control",
    )
    for name in odd:
        with open(os.path.join(folder, name), "wb") as stream:
            stream.write(b"content of " + name)


def _make_links(root: Path) -> None:
    root.mkdir()
    (root / "first").write_bytes(b"one file, three names\n" * 5000)
    (root / "deeper").mkdir()
    os.link(root / "first", root / "second")
    os.link(root / "first", root / "deeper" / "third")
    (root / "to a file").symlink_to("first")
    (root / "to a folder").symlink_to("deeper")
    (root / "to nowhere").symlink_to("/nowhere/" + "y" * 900)
    os.symlink(b"\xff\xfe", os.fsencode(root / "to stray bytes"))
    os.utime(root / "to a file", ns=(1, 1_234_567_890_123_456_789), follow_symlinks=False)
    os.mkfifo(root / "pipe", 0o620)


def _make_files_with_holes(root: Path) -> None:
    root.mkdir()
    with (root / "islands").open("wb") as stream:
        stream.truncate(SPARSE_BYTES)
        for at in (0, 10 * MIB + 123, SPARSE_BYTES - 1):
            stream.seek(at)
            stream.write(b"A" * min(5000, SPARSE_BYTES - at))
    with (root / "hole at the end").open("wb") as stream:
        stream.write(b"data")
        stream.truncate(MIB)
    (root / "empty").touch()
    (root / "empty folder").mkdir()


def _make_attributes(root: Path) -> None:
    """Modes, times and xattrs; with root's rights also owners. What this filesystem lacks is left out."""
    root.mkdir()
    for name, mode in (("mode", 0o751), ("setuid", 0o4755)):
        (root / name).write_bytes(name.encode())
        (root / name).chmod(mode)
    for name, at in (("old", -1_500_000_000_123_456_789), ("future", 4_500_000_000_987_654_321), ("ns", 1)):
        (root / name).touch()
        os.utime(root / name, ns=(at, at))
    (root / "xattrs").touch()
    try:
        for key, value in (("user.text", b"1"), ("user.bytes", bytes(range(256))), ("user.empty", b"")):
            os.setxattr(root / "xattrs", key, value)
    except OSError as err:
        if err.errno not in (95, 28):  # ENOTSUP: tmpfs of an older kernel; ENOSPC: no room for xattrs
            raise
    if os.geteuid() == 0:
        (root / "somebody else's").write_bytes(b"x")
        os.chown(root / "somebody else's", 12345, 54321)
        (root / "for nobody").write_bytes(b"x")
        (root / "for nobody").chmod(0)
    (root / "read-only").mkdir()
    (root / "read-only" / "inside").write_bytes(b"x")
    (root / "read-only").chmod(0o555)
    (root / "shared").mkdir()
    (root / "shared").chmod(0o1777)


# --- the disk -------------------------------------------------------------------------------------------------------


def make_image(path: Path, tools: Tools) -> None:
    """An ext4 filesystem with real files in it. Takes no root rights."""
    content = path.with_name(path.name + ".content")
    _copy_real_files(content / "usr", FILES_MAX, IMAGE_CONTENT_BYTES_MAX)
    _run([tools.mkfs, "-q", "-F", "-d", str(content), str(path), f"{IMAGE_BYTES // MIB}M"])
    shutil.rmtree(content)


def change_image(path: Path, tools: Tools) -> None:
    """A new file and folder on the disk, by the filesystem's own tool."""
    chance = random.Random(SEED + 2)  # noqa: S311 -- reproducible data, no secret
    new = path.with_name("new file on the disk")
    new.write_bytes(chance.randbytes(MIB))
    orders = f'write "{new}" report\nmkdir inbox\nquit\n'
    _run([tools.debugfs, "-w", "-f", "-", str(path)], orders)
    new.unlink()


def damage_image(path: Path) -> None:
    """Superblock and inodes overwritten, pages scribbled on, the second half gone."""
    chance = random.Random(SEED + 3)  # noqa: S311 -- reproducible data, no secret
    with path.open("r+b") as stream:
        stream.write(chance.randbytes(4 * MIB))
        for _ in range(200):
            stream.seek(chance.randrange(IMAGE_BYTES // 2))
            stream.write(chance.randbytes(4 * KIB))
        stream.truncate(IMAGE_BYTES // 2)


def filesystem_is_sound(path: Path, tools: Tools) -> bool:
    """What the filesystem's own checker says of a disk, without changing it."""
    checked = subprocess.run([tools.fsck, "-f", "-n", str(path)], capture_output=True, check=False)
    return checked.returncode == 0


# --- the stuff they are made of -------------------------------------------------------------------------------------


def _copy_real_files(target: Path, files_max: int, bytes_max: int) -> None:
    """Files of this Python installation, in a fixed order, until either limit is reached."""
    files = total = 0
    for origin in dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib")):
        for path in _candidates(Path(origin)):
            size = path.lstat().st_size
            if size > FILE_BYTES_MAX or total + size > bytes_max:
                continue
            copy = target / Path(origin).name / path.relative_to(origin)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy, follow_symlinks=False)
            files, total = files + 1, total + size
            if files == files_max:
                return


def _candidates(origin: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(origin):
        names.sort()
        # Folders of other installations below this one are not part of it.
        names[:] = [name for name in names if name not in ("site-packages", "dist-packages")]
        yield from (Path(folder, name) for name in sorted(files))


def _regular_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _run(argv: list[str], orders: str = "") -> None:
    done = subprocess.run(argv, input=orders, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandRefused(reason=f"{os.path.basename(argv[0])} failed: {done.stderr.strip()[-400:]}")
