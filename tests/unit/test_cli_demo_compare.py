"""The demo's judge sees every kind of difference, and its data holds every kind of thing."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from strongroom.cli.demo import sources
from strongroom.cli.demo.compare import differences, list_folder


def _tree(root: Path) -> None:
    root.mkdir()
    (root / "file").write_bytes(b"0123456789" * 100)
    (root / "same").write_bytes(b"x")
    os.link(root / "same", root / "too")
    (root / "link").symlink_to("file")
    (root / "folder").mkdir()
    with (root / "sparse").open("wb") as stream:
        stream.truncate(1 << 20)


def _flip(root: Path) -> None:
    status = (root / "file").stat()
    data = bytearray((root / "file").read_bytes())
    data[500] ^= 1
    (root / "file").write_bytes(data)
    os.utime(root / "file", ns=(status.st_atime_ns, status.st_mtime_ns))


def _relink(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")


def _unlink_hard(root: Path) -> None:
    status = (root / "too").stat()
    (root / "too").unlink()
    (root / "too").write_bytes(b"x")
    (root / "too").chmod(status.st_mode & 0o7777)
    os.utime(root / "too", ns=(status.st_atime_ns, status.st_mtime_ns))


def _fill(root: Path) -> None:
    (root / "sparse").write_bytes(b"\0" * (1 << 20))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (_flip, "content"),
    "mode": (lambda r: (r / "file").chmod(0o600), "mode"),
    "time": (lambda r: os.utime(r / "folder", ns=(0, 1)), "mtime_ns"),
    "size": (lambda r: os.truncate(r / "file", 10), "size"),
    "target": (_relink, "target"),
    "missing": (lambda r: (r / "file").unlink(), "is missing"),
    "extra": (lambda r: (r / "new").touch(), "should not be there"),
    "kind": (lambda r: ((r / "folder").rmdir(), (r / "folder").touch()), "kind"),
    "hard link": (_unlink_hard, "hard_link"),
    "holes filled": (_fill, "sparse"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_seen(damage: str, tmp_path: Path) -> None:
    """Each attribute that is changed alone is reported by its name."""
    change, word = DAMAGES[damage]
    _tree(tmp_path / "t")
    before = list_folder(bytes(tmp_path / "t"))
    assert differences(before, list_folder(bytes(tmp_path / "t"))) == []
    change(tmp_path / "t")
    found = differences(before, list_folder(bytes(tmp_path / "t")))
    assert any(word in sentence for sentence in found), found


def test_xattr_damage_is_seen(tmp_path: Path) -> None:
    """A changed attribute value is reported."""
    _tree(tmp_path / "t")
    try:
        os.setxattr(tmp_path / "t" / "file", "user.a", b"1")
    except OSError as err:
        pytest.skip(f"this filesystem has no user xattrs: {err}")
    before = list_folder(bytes(tmp_path / "t"))
    os.setxattr(tmp_path / "t" / "file", "user.a", b"2")
    assert any("xattrs" in sentence for sentence in differences(before, list_folder(bytes(tmp_path / "t"))))


def test_a_days_work_and_a_bad_day_change_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change and damage are real: the judge finds hundreds of differences after each."""
    monkeypatch.setattr(sources, "FILES_MAX", 800)
    root = tmp_path / "project"
    sources.make_folder(root)
    made = list_folder(bytes(root))
    assert len(made) > 800
    assert {e.kind for e in made.values()} >= {0o100000, 0o040000, 0o120000, 0o010000}
    sources.change_folder(root)
    changed = list_folder(bytes(root))
    assert len(differences(made, changed)) > 100
    sources.damage_folder(root)
    assert len(differences(changed, list_folder(bytes(root)))) > 300
    (root / "attributes" / "read-only").chmod(0o755)
    shutil.rmtree(root)
