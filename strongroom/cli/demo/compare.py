"""The demo's own judge: what a folder or a disk image is, attribute by attribute, and how two of them differ.

It shares nothing with the program it judges: it walks with os.scandir and hashes with SHA-256.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

Listing = Mapping[bytes, "Entry"]

_DIGEST_FOR = "sha256"
_ALLOCATION = 512  # st_blocks counts these, whatever the filesystem's block size is


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One name. Fields that do not apply are 0 or empty.

    hard_link  path of the first name of the same file, in the order of the walk; b"" when it has one name only
    sparse     less than half of its length takes up space; how much exactly is the filesystem's business
    """

    kind: int
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    content: str
    target: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    hard_link: bytes
    sparse: bool


def list_folder(root: bytes) -> dict[bytes, Entry]:
    """Path below `root` -> entry; the root itself is b"."."""
    first_names: dict[tuple[int, int], bytes] = {}
    found = {b".": _entry(root, b".", first_names)}
    for path, name in _walk(root, b""):
        found[name] = _entry(path, name, first_names)
    return found


def list_image(path: bytes) -> dict[bytes, Entry]:
    """A disk image as a listing of one entry, without its time: a restore writes a new file."""
    whole = _entry(path, b"disk", {})
    return {b"disk": Entry(**{f.name: getattr(whole, f.name) for f in fields(Entry)} | {"mtime_ns": 0})}


def differences(expected: Listing, found: Listing) -> list[str]:
    """Sentences, one a difference, sorted by path. Empty: equal in every byte and attribute."""
    sentences = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            sentences.append(f"{_named(path)} is missing")
        elif path not in expected:
            sentences.append(f"{_named(path)} should not be there")
        else:
            sentences.extend(_differing(path, expected[path], found[path]))
    return sentences


def _differing(path: bytes, expected: Entry, found: Entry) -> Iterator[str]:
    for field in fields(Entry):
        wanted, got = getattr(expected, field.name), getattr(found, field.name)
        if field.name == "sparse" and not wanted:
            continue  # fewer bytes on disk than before is no loss
        if wanted != got:
            yield f"{_named(path)}: {field.name} is {got!r}, expected {wanted!r}"


def _walk(folder: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = prefix + entry.name
        yield entry.path, name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, name + b"/")


def _entry(path: bytes, name: bytes, first_names: dict[tuple[int, int], bytes]) -> Entry:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    regular = kind == stat.S_IFREG
    hard_link = b""
    if kind != stat.S_IFDIR and status.st_nlink > 1:
        hard_link = first_names.setdefault((status.st_dev, status.st_ino), name)
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        owner=(status.st_uid, status.st_gid),
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if regular else 0,
        content=_digest(path) if regular else "",
        target=os.readlink(path) if kind == stat.S_IFLNK else b"",
        xattrs=_xattrs(path),
        hard_link=hard_link,
        sparse=regular and status.st_blocks * _ALLOCATION < status.st_size // 2,
    )


def _digest(path: bytes) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, _DIGEST_FOR).hexdigest()


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def _named(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
