"""`strongroom engine`: the commands that benchmarks and scripts run, on real folders and files."""

import filecmp
import json
import os
import shutil
from pathlib import Path

import pytest
from engine_streams import noise

from strongroom.cli.engine import EXIT_FAILED, EXIT_OK, EXIT_USAGE, run


def summary(capsys: pytest.CaptureFixture[str], *argv: str, code: int = EXIT_OK) -> dict[str, object]:
    """Run with --json; the last line it printed."""
    capsys.readouterr()
    assert run([*argv, "--json"]) == code
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def same(first: Path, second: Path) -> bool:
    """Names, types, content and targets are equal, all the way down."""
    compared = filecmp.dircmp(first, second, ignore=[], hide=[])
    if compared.left_only or compared.right_only or compared.funny_files:
        return False
    files = [name for name in compared.common_files if not (first / name).is_symlink()]
    if filecmp.cmpfiles(first, second, files, shallow=False)[0] != files:
        return False
    links = [name for name in os.listdir(first) if (first / name).is_symlink()]
    if any(os.readlink(first / name) != os.readlink(second / name) for name in links):
        return False
    return all(same(first / name, second / name) for name in compared.common_dirs)


def test_a_folder_goes_round(tmp_path: Path, source: Path, repo: str, capsys: pytest.CaptureFixture[str]) -> None:
    """init, backup, no change, change, restore: what comes back is what was there, and only changes are read."""
    first = summary(capsys, "backup", repo, str(source), "g0")
    assert first["bytes_total"] == 2000 + (3 << 20)
    assert first["bytes_read"] == 1000 + (3 << 20)  # two names, one reading
    os.utime(source / "d" / "large", ns=(1, 1))
    (source / "new").write_bytes(b"new")
    second = summary(capsys, "backup", repo, str(source), "g1")
    assert second["bytes_new"] == 3
    for label, dest in (("g1", tmp_path / "dest"), ("g0", tmp_path / "dest0")):
        summary(capsys, "restore", repo, label, str(dest))
        assert (dest / "new").exists() is (label == "g1")
    assert same(source, tmp_path / "dest")
    assert (tmp_path / "dest" / "a").stat().st_ino == (tmp_path / "dest" / "d" / "same").stat().st_ino
    backups = summary(capsys, "list", repo)["backups"]
    assert isinstance(backups, list)
    assert [row["label"] for row in backups] == ["g0", "g1"]


def test_one_path_is_restored(tmp_path: Path, source: Path, repo: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--path brings one entry with its folders."""
    summary(capsys, "backup", repo, str(source), "g0")
    summary(capsys, "restore", repo, "g0", str(tmp_path / "dest"), "--path", "d/large")
    found = [path.relative_to(tmp_path / "dest") for path in (tmp_path / "dest").rglob("*") if path.is_file()]
    assert found == [Path("d/large")]
    assert filecmp.cmp(source / "d" / "large", tmp_path / "dest" / "d" / "large", shallow=False)


def test_an_image_goes_round(tmp_path: Path, repo: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A file given as source is a disk: backed up by blocks and restored to a file."""
    image = tmp_path / "disk.img"
    image.write_bytes(noise(1 << 20, 2) + bytes(5 << 20) + noise(100_000, 3))
    summary(capsys, "backup", repo, str(image), "g0")
    summary(capsys, "restore", repo, "g0", str(tmp_path / "back.img"))
    assert filecmp.cmp(image, tmp_path / "back.img", shallow=False)
    summary(capsys, "restore", repo, "g0", str(tmp_path / "back.img"), "--path", "x", code=EXIT_FAILED)


def test_a_changed_block_list_is_used(tmp_path: Path, repo: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--cbt reads only the blocks of the list, in the form with and without base and size."""
    source = tmp_path / "vm"
    source.mkdir()
    image, size = source / "image.raw", 65 << 20
    with image.open("wb") as stream:
        stream.truncate(size)
        stream.write(noise(1 << 20, 4))
    os.utime(image, ns=(1, 1))
    base = summary(capsys, "backup", repo, str(source), "g0")["root"]
    cbt = tmp_path / "cbt.json"
    for number in (1, 2):
        with image.open("r+b") as stream:
            stream.seek(3 << 20)
            stream.write(noise(1000, number))
        more = {"base": base, "size": size} if number == 2 else {}
        cbt.write_text(json.dumps({"extents": [[3 << 20, 65536]], **more}))
        report = summary(capsys, "backup", repo, str(source), f"g{number}", "--cbt", str(cbt))
        assert (report["full_reason"], report["bytes_read"]) == (None, 65536)
        base = report["root"]
    summary(capsys, "restore", repo, "g2", str(tmp_path / "dest"))
    assert filecmp.cmp(image, tmp_path / "dest" / "image.raw", shallow=False)
    for text in ("", "{}", "[]", '{"extents": [[0, -1]]}', '{"extents": [[0, 1]], "base": 5}', '{"extents": 3}'):
        cbt.write_text(text)
        error = summary(capsys, "backup", repo, str(source), "bad", "--cbt", str(cbt), code=EXIT_FAILED)
        assert error["message_type"] == "error"


def test_mistakes_have_sentences(tmp_path: Path, source: Path, repo: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors exit with 2, refusals with 1 and a sentence; nothing is overwritten."""
    assert run([]) == EXIT_USAGE
    assert run(["backup", repo]) == EXIT_USAGE
    assert run(["--help"]) == EXIT_OK
    summary(capsys, "backup", repo, str(source), "g0")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    for argv in (
        ["backup", repo, str(source), "g0"],
        ["backup", repo, str(tmp_path / "none"), "g9"],
        ["backup", str(tmp_path / "none"), str(source), "g9"],
        ["restore", repo, "none", str(tmp_path / "dest")],
        ["restore", repo, "g0", str(full)],
        ["init", repo],
    ):
        error = summary(capsys, *argv, code=EXIT_FAILED)
        assert error["message_type"] == "error"
        assert str(error["message"]).endswith(".")
    assert (full / "mine").exists()
    (Path(repo) / ".master.key").chmod(0o644)
    assert "chmod 600" in str(summary(capsys, "list", repo, code=EXIT_FAILED)["message"])


def test_deleted_backups_are_pruned_and_the_rest_verifies(
    tmp_path: Path, source: Path, repo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """delete and prune free the bytes of what only the deleted backup needed; verify finds damage and says so."""
    summary(capsys, "backup", repo, str(source), "g0")
    (source / "d" / "large").write_bytes(noise(3 << 20, 9))
    summary(capsys, "backup", repo, str(source), "g1")
    assert summary(capsys, "verify", repo)["findings"] == []
    summary(capsys, "delete", repo, "g0")
    pruned = summary(capsys, "prune", repo)
    assert isinstance(pruned["bytes_freed"], int)
    assert pruned["bytes_freed"] >= 3 << 20
    assert summary(capsys, "verify", repo)["findings"] == []
    summary(capsys, "restore", repo, "g1", str(tmp_path / "dest"))
    assert same(source, tmp_path / "dest")
    pack = max(Path(repo).glob("domains/*/packs/*"), key=lambda path: path.stat().st_size)
    whole = bytearray(pack.read_bytes())
    whole[len(whole) // 2] ^= 1
    pack.unlink()
    pack.write_bytes(whole)
    (finding,) = summary(capsys, "verify", repo, code=EXIT_FAILED)["findings"]  # type: ignore[misc]
    assert finding["name"].endswith(pack.name)
    assert finding["paths"] == [{"root": finding["roots"][0], "path": "d/large"}]
    assert finding["paths_count"] == 1
    assert run(["verify", repo]) == EXIT_FAILED
    said = capsys.readouterr().out
    assert "g1: d/large" in said
    assert "Back up the same source again" in said


def test_a_repository_is_proven_without_its_key_and_repaired_from_its_copy(
    tmp_path: Path, source: Path, repo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """scrub needs no key; it and a sampled verify find what changed; repair brings it back from a copied folder."""
    summary(capsys, "backup", repo, str(source), "g0")
    other = tmp_path / "other"
    shutil.copytree(repo, other)
    (Path(repo) / ".master.key").rename(tmp_path / "key")
    assert summary(capsys, "scrub", repo)["unproven_count"] == 0
    pack = max(Path(repo).glob("domains/*/packs/*"), key=lambda path: path.stat().st_size)
    whole = bytearray(pack.read_bytes())
    whole[len(whole) // 2] ^= 1
    pack.unlink()
    pack.write_bytes(whole)
    (found,) = summary(capsys, "scrub", repo, code=EXIT_FAILED)["findings"]  # type: ignore[misc]
    assert found["kind"] == "changed"
    assert found["name"].endswith(pack.name)
    assert summary(capsys, "scrub", repo, "--sample", "0", code=EXIT_FAILED)["message_type"] == "error"
    assert run(["scrub", repo]) == EXIT_FAILED
    assert "Verify with the key" in capsys.readouterr().out
    (tmp_path / "key").rename(Path(repo) / ".master.key")
    assert summary(capsys, "verify", repo, "--sample", "90", code=EXIT_FAILED)["findings"]
    repaired = summary(capsys, "repair", repo, "--from", str(other))
    assert repaired["before"]
    assert repaired["chunks_repaired"]
    summary(capsys, "restore", repo, "g0", str(tmp_path / "dest"))
    assert same(source, tmp_path / "dest")


def test_a_file_of_holes_larger_than_the_disk_is_restored_by_force(tmp_path: Path, repo: str) -> None:
    """A sparse file longer than the free space is refused, with the way on; with --force it comes back, as holes."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.truncate(4 << 40)
        file.seek(1 << 40)
        file.write(b"here")
    assert run(["backup", repo, str(source), "one"]) == EXIT_OK
    assert run(["restore", repo, "one", str(target)]) == EXIT_FAILED
    assert run(["restore", repo, "one", str(target), "--force"]) == EXIT_OK
    with (target / "sparse").open("rb") as file:
        file.seek(1 << 40)
        assert file.read(5) == b"here\0"
    assert (target / "sparse").stat().st_size == 4 << 40
    assert (target / "sparse").stat().st_blocks * 512 < 1 << 20


def test_a_copy_lives_without_its_source(
    tmp_path: Path, source: Path, repo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied into a new folder, only the increment moves the second time; after the source is shredded the copy is
    listed, restored, verified, pruned and deleted like a backup of its own, beside one."""
    there = str(tmp_path / "there")
    run(["backup", repo, str(source), "one"])
    first = summary(capsys, "copy", repo, there)
    (source / "d" / "more").write_bytes(noise(100_000, 2))
    run(["backup", repo, str(source), "two"])
    second = summary(capsys, "copy", repo, there, "--label", "two")
    assert len(first["roots_copied"]) == len(second["roots_copied"]) == 1  # type: ignore[arg-type]
    assert 100_000 < second["bytes_copied"] < 150_000 < first["bytes_copied"]  # type: ignore[operator]
    assert summary(capsys, "copy", repo, there)["bytes_copied"] == 0
    assert run(["shred", repo]) == EXIT_USAGE, "it must be confirmed"
    assert summary(capsys, "shred", repo, "--yes") == {"message_type": "summary", "keys_dropped": 1}
    assert run(["list", repo]) == EXIT_FAILED
    assert run(["backup", there, str(source), "own"]) == EXIT_OK
    listed = summary(capsys, "list", there)["backups"]
    assert [(row["label"], row["copied"]) for row in listed] == [("one", True), ("two", True), ("own", False)]  # type: ignore[attr-defined]
    for label in ("two", "own"):
        assert run(["restore", there, label, str(tmp_path / label)]) == EXIT_OK
        assert same(source, tmp_path / label)
    assert run(["delete", there, "one"]) == EXIT_OK
    assert run(["prune", there]) == EXIT_OK
    checked = summary(capsys, "verify", there)
    assert (checked["findings"], checked["roots"]) == ([], 2)


def test_a_copy_goes_to_any_store(tmp_path: Path, source: Path, repo: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A URL needs a key file; a label that is not there is a mistake, and a key that others own opens nothing."""
    run(["backup", repo, str(source), "one"])
    url, key = f"file://{tmp_path / 'store'}", str(tmp_path / "key")
    assert run(["copy", repo, url]) == EXIT_FAILED
    assert "--dest-key" in capsys.readouterr().err
    assert run(["copy", repo, url, "--dest-key", key, "--label", "nine"]) == EXIT_FAILED
    assert len(summary(capsys, "copy", repo, url, "--dest-key", key)["roots_copied"]) == 1  # type: ignore[arg-type]
    assert run(["copy", repo, url, "--dest-key", f"{repo}/.master.key"]) == EXIT_FAILED
    listed = summary(capsys, "list", str(tmp_path / "store"), "--key", key)["backups"]
    assert [row["label"] for row in listed] == ["one"]  # type: ignore[attr-defined]
