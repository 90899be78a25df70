"""A folder tree with everything that backups get wrong, a listing that sees it all, and a pump from stream to target.

`make_tree` needs root for device nodes, foreign owners, capabilities and trusted attributes; what could not be made is
returned. `listing` walks by descriptors and compares what a user can see; hole layouts count only as "sparse or not".
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path as FilePath

from strongroom.base.streams import Entry, ExtentKind, Path, TreeStream, TreeTarget

GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
DEEP_LEVELS, DEEP_NAME = 60, b"d" * 90  # 5.4 KB of path: beyond PATH_MAX
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=p
NAMES = (
    b"latin1-\xe9\xff",
    "utf8-é".encode(),
    "nfd-é".encode(),
    b"new\nline",
    b"tab\there",
    b" lead",
    b"trail ",
    b"-dash",
    b"back\\slash",
    b"quote\"'",
    b"a" * 255,
    b"*?[]",
    b"\x01ctl",
)


def posix_acl(*entries: tuple[int, int, int]) -> bytes:
    """The xattr form of an ACL: version 2, then (tag, permissions, id), little endian."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACL = posix_acl((1, 6, NOBODY), (2, 7, 12345), (4, 4, NOBODY), (8, 4, 54321), (16, 7, NOBODY), (32, 4, NOBODY))


class TreeMaker:
    """Makes the tree; `missed` tells what this file system or user cannot have."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.missed: list[str] = []
        os.mkdir(root)

    def at(self, *names: bytes) -> bytes:
        return os.path.join(self.root, *names)

    def file(self, name: bytes, data: bytes = b"x", mode: int = 0o644) -> bytes:
        path = self.at(name)
        with open(path, "wb") as out:
            out.write(data)
        os.chmod(path, mode)
        return path

    def xattr(self, path: bytes, name: str, value: bytes) -> None:
        try:
            os.setxattr(path, name, value, follow_symlinks=False)
        except OSError as err:
            self.missed.append(f"{name} on {path!r}: {err}")

    def flags(self, path: bytes, flags: int) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            old = struct.unpack("l", fcntl.ioctl(fd, GETFLAGS, b"\0" * 8))[0]
            fcntl.ioctl(fd, SETFLAGS, struct.pack("l", old | flags))
        except OSError as err:
            self.missed.append(f"flags {flags:#x}: {err}")
        finally:
            os.close(fd)

    def names_and_owners(self) -> None:
        for name in NAMES:
            self.file(name, name)
        self.file(b"plain")
        self.file(b"empty", b"")
        self.file(b"noperm", mode=0)
        os.chown(self.file(b"owner"), 12345, 54321)
        path = self.file(b"setuid")
        os.chown(path, 12345, 54321)
        os.chmod(path, 0o6755)

    def deep_chain(self) -> None:
        fd = os.open(self.root, os.O_RDONLY)
        for _ in range(DEEP_LEVELS):
            os.mkdir(DEEP_NAME, dir_fd=fd)
            below = os.open(DEEP_NAME, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        leaf = os.open(b"deepfile", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        os.write(leaf, b"deep")
        os.close(leaf)
        os.close(fd)

    def links_and_nodes(self) -> None:
        os.symlink(b"plain", self.at(b"sl"))
        try:
            os.symlink(b"/nowhere/" + b"y" * 900, self.at(b"sl-dangling-long"))
        except OSError as err:
            self.missed.append(f"long link: {err}")
        os.symlink(b"\xff\xfe", self.at(b"sl-bytes"))
        os.lchown(self.at(b"sl"), 777, 888)
        os.utime(self.at(b"sl"), ns=(1, 1234567890123456789), follow_symlinks=False)
        self.xattr(self.at(b"sl"), "trusted.onlink", b"L")
        os.mkdir(self.at(b"sub"))
        os.link(self.at(b"plain"), self.at(b"hard1"))
        os.link(self.at(b"plain"), self.at(b"sub", b"hard2"))
        os.link(self.at(b"sl"), self.at(b"hardlink-to-symlink"), follow_symlinks=False)
        os.mkfifo(self.at(b"fifo"), 0o620)
        with socket.socket(socket.AF_UNIX) as unix:
            where = os.open(self.root, os.O_RDONLY)
            unix.bind(f"/proc/self/fd/{where}/sock")  # a socket's path may have 107 bytes only
            os.close(where)
        for name, kind, device in ((b"chr", stat.S_IFCHR, (1, 3)), (b"blk", stat.S_IFBLK, (259, 200000))):
            try:
                os.mknod(self.at(name), kind | 0o640, os.makedev(*device))
            except OSError as err:
                self.missed.append(f"{name!r}: {err}")

    def holes(self) -> None:
        fd = os.open(self.file(b"sparse", b""), os.O_RDWR)
        os.ftruncate(fd, 5 << 30)
        os.pwrite(fd, b"A" * 5000, 1 << 30)
        os.pwrite(fd, b"B", (5 << 30) - 1)
        os.close(fd)
        os.truncate(self.file(b"hole-end", b"data"), 1 << 20)
        fd = os.open(self.file(b"prealloc", b"z" * 10), os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(fd, 1, ctypes.c_int64(0), ctypes.c_int64(1 << 20)) != 0:  # FALLOC_FL_KEEP_SIZE
            self.missed.append("preallocation")
        os.close(fd)

    def attributes(self) -> None:
        path = self.file(b"xattr")
        for name, value in (
            ("user.a", b"1"),
            ("user.bin", bytes(range(256))),
            ("user.empty", b""),
            ("user.big", b"v" * 3000),
            ("trusted.t", b"t"),
            ("security.capability", CAPABILITY),
        ):
            self.xattr(path, name, value)
        self.xattr(self.file(b"acl"), "system.posix_acl_access", ACL)
        os.mkdir(self.at(b"acldir"))
        self.xattr(self.at(b"acldir"), "system.posix_acl_default", ACL)
        with open(self.at(b"acldir", b"inherits"), "wb") as out:
            out.write(b"i")
        self.flags(self.file(b"immutable"), 0x10)
        self.flags(self.file(b"append"), 0x20)
        self.flags(self.file(b"nodump"), 0x40)
        os.mkdir(self.at(b"immutable-folder"))
        os.mkdir(self.at(b"immutable-folder", b"inside"))
        self.flags(self.at(b"immutable-folder"), 0x10)

    def times_and_modes(self) -> None:
        for name, at_ns in (
            (b"t-old", -1_500_000_000_123456789),
            (b"t-zero", 0),
            (b"t-future", 4_500_000_000_987654321),
            (b"t-ns", 1_600_000_000_000000001),
        ):
            os.utime(self.file(name), ns=(at_ns, at_ns))
        os.mkdir(self.at(b"emptydir"))
        os.mkdir(self.at(b"sticky"))
        os.chmod(self.at(b"sticky"), 0o3777)
        os.mkdir(self.at(b"ro"))
        with open(self.at(b"ro", b"in"), "wb") as out:
            out.write(b"x")
        os.chmod(self.at(b"ro"), 0o555)
        os.utime(self.at(b"ro"), ns=(5, 1_000_000_000_555555555))
        os.mkdir(self.at(b"closed"), 0)


def make_tree(root: FilePath) -> list[str]:
    """Make the tree at `root`, which must not exist; returns what could not be made."""
    maker = TreeMaker(os.fsencode(root))
    maker.names_and_owners()
    maker.deep_chain()
    maker.links_and_nodes()
    maker.holes()
    maker.attributes()
    maker.times_and_modes()
    os.utime(maker.root, ns=(7, 1_100_000_000_777777777))
    return maker.missed


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the ranges that hold data."""
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:
                return
            raise
        stop = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, stop
        at = stop


def content_hash(fd: int, size: int) -> str:
    """Over the non-zero 4 KiB pages with their places, so that holes and written zeros are equal."""
    digest = hashlib.sha256()
    for start, stop in data_ranges(fd, size):
        at = start // 4096 * 4096
        while at < stop:
            piece = os.pread(fd, min(1 << 20, stop - at), at)
            if not piece:
                break
            for page in range(0, len(piece), 4096):
                text = piece[page : page + 4096].rstrip(b"\0")
                if text:
                    digest.update(struct.pack(">Q", at + page) + text)
            at += len(piece)
    return digest.hexdigest()


def listing(root: FilePath | bytes, *, sockets: bool = False) -> dict[Path, dict[str, object]]:
    """path -> what is visible of it; staging places are part of it, sockets only when asked for."""
    found: dict[Path, dict[str, object]] = {}
    first: dict[tuple[int, int], Path] = {}
    top = os.open(os.path.dirname(os.fsencode(root)) or b".", os.O_RDONLY)
    stack: list[tuple[int, bytes, Path]] = [(top, os.path.basename(os.fsencode(root)), ())]
    opened = [top]
    while stack:
        folder_fd, name, path = stack.pop()
        info = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        if stat.S_ISSOCK(info.st_mode) and not sockets:
            continue
        seen: dict[str, object] = {"mode": oct(info.st_mode), "owner": (info.st_uid, info.st_gid)}
        seen["mtime"] = info.st_mtime_ns
        place = b"/proc/self/fd/%d/%s" % (folder_fd, name)
        seen["xattrs"] = {
            key: os.getxattr(place, key, follow_symlinks=False) for key in os.listxattr(place, follow_symlinks=False)
        }
        if not stat.S_ISDIR(info.st_mode) and info.st_nlink > 1:
            seen["hard"] = first.setdefault((info.st_dev, info.st_ino), path)
        if stat.S_ISLNK(info.st_mode):
            seen["target"] = os.readlink(name, dir_fd=folder_fd)
        if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            seen["device"] = info.st_rdev
        found[path] = seen
        if not stat.S_ISREG(info.st_mode) and not stat.S_ISDIR(info.st_mode):
            continue
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME, dir_fd=folder_fd)
        try:
            seen["flags"] = struct.unpack("l", fcntl.ioctl(fd, GETFLAGS, b"\0" * 8))[0] & 0x70
        except OSError:
            seen["flags"] = None
        if stat.S_ISREG(info.st_mode):
            seen["size"] = info.st_size
            seen["content"] = content_hash(fd, info.st_size)
            seen["sparse"] = info.st_blocks * 512 < info.st_size
            os.close(fd)
            continue
        opened.append(fd)
        names = sorted((os.fsencode(item) for item in os.listdir(fd)), reverse=True)
        stack.extend((fd, item, (*path, item)) for item in names)
    for fd in opened:
        os.close(fd)
    return found


def differences(before: dict[Path, dict[str, object]], after: dict[Path, dict[str, object]]) -> list[str]:
    """Sentences; [] when both listings are equal."""
    out = [f"missing {path}" for path in before.keys() - after.keys()]
    out += [f"extra {path}" for path in after.keys() - before.keys()]
    for path in before.keys() & after.keys():
        for key in sorted(before[path].keys() | after[path].keys()):
            old, new = before[path].get(key), after[path].get(key)
            if old != new:
                shown = b"/".join(path)[-60:]
                out.append(f"{key} of {shown!r}: {str(old)[:200]} became {str(new)[:200]}")
    return sorted(out)


def loosen_all(root: FilePath) -> None:
    """Clear immutable and append-only flags below, so that a test's folder can be removed."""
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in (b".", *folders, *files):
            path = os.path.join(folder, name)
            if len(path) > 4000:
                continue
            mode = os.lstat(path).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                flags = struct.unpack("l", fcntl.ioctl(fd, GETFLAGS, b"\0" * 8))[0]
                if flags & 0x30:
                    fcntl.ioctl(fd, SETFLAGS, struct.pack("l", flags & ~0x30))
            except OSError:
                pass
            finally:
                os.close(fd)


def pump(stream: TreeStream, target: TreeTarget, block_bytes: int = 1 << 20) -> list[Path]:
    """Copy a tree as the engine would: folders, files by extents, links after their first; returns what was skipped."""
    first: dict[tuple[int, int], Path] = {}
    skipped: list[Path] = []
    entry, attributes = stream.root()
    target.folder((), entry, attributes)
    for folder in stream.folders():
        skipped += [item.path for item in folder.skipped]
        for entry in folder.entries:
            path = (*folder.path, entry.name)
            attributes = folder.attributes(entry)
            if not stat.S_ISDIR(entry.mode) and entry.nlink > 1:
                known = first.setdefault((entry.dev, entry.ino), path)
                if known != path and target.link(path, known, entry, attributes):
                    continue
            if stat.S_ISDIR(entry.mode):
                target.folder(path, entry, attributes)
            elif stat.S_ISREG(entry.mode):
                with folder.open(entry) as data:
                    out = target.file(path, entry, attributes)
                    for offset, length, kind in data.extents():
                        if kind != ExtentKind.DATA:
                            continue
                        for at in range(offset, offset + length, block_bytes):
                            buffer = memoryview(bytearray(min(block_bytes, offset + length - at)))
                            got = data.read_into(at, buffer)
                            out.write(at, buffer[:got])
                    assert not data.changed()
                    out.close()
            else:
                target.node(path, entry, attributes)
    return skipped


def plain_entry(name: bytes, mode: int, **fields: int) -> Entry:
    """An entry made up by a test; owner and times are this user's and 2001."""
    values = {"uid": os.geteuid(), "gid": os.getegid(), "mtime_ns": 1_000_000_000_000000007, "size": 0, "nlink": 1}
    values |= fields
    return Entry(
        name=name,
        mode=mode,
        uid=values["uid"],
        gid=values["gid"],
        mtime_ns=values["mtime_ns"],
        size=values["size"],
        ctime_ns=0,
        ino=0,
        dev=0,
        nlink=values["nlink"],
        rdev=fields.get("rdev", 0),
        sparse=False,
    )
