"""The benchmark's data, its live folder and its measuring: small, and on real files."""

import os
import random
import sys
from pathlib import Path

import pytest

from bench import memory
from bench.compare import datasets, disk, live, peers
from bench.compare.measure import digest_tree, floor_bytes, folder_size, parse_size, run
from bench.compare.programs import find_programs

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("20M", 20 * MIB), ("1.5g", 3 << 29), ("1T", 1 << 40), ("0", 0)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    """Binary units, in either case."""
    assert parse_size(text) == size


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    datasets.make(out, datasets.Recipe(tree=6 * MIB, image=24 * MIB, random=MIB, seed=3, synthetic=True))
    return out


def test_two_generations_differ_by_about_what_was_asked(made: Path) -> None:
    """The second tree has renamed, deleted and new files, and some 2 % of its bytes changed."""
    about = datasets.make(made, datasets.Recipe(tree=6 * MIB, image=24 * MIB, random=MIB, seed=3, synthetic=True))
    change = about["change"]
    assert isinstance(change, dict)
    assert change["renamed"] >= 1
    assert change["deleted"] >= 1
    assert 0.02 * 6 * MIB <= change["bytes"] < 0.15 * 6 * MIB
    assert about["tree.1"] != about["tree.2"]
    size_1, size_2 = ((made / f"random.{generation}").stat().st_size for generation in (1, 2))
    assert size_1 == MIB
    assert 0 < size_2 - size_1 < 22 * 1000


def test_the_same_recipe_makes_the_same_synthetic_tree(made: Path, tmp_path: Path) -> None:
    """It depends on the seed alone; another recipe is made anew in place of the old."""
    first = datasets.make(tmp_path, datasets.Recipe(tree=MIB, image=16 * MIB, random=1, seed=1, synthetic=True))
    again = datasets.make(tmp_path, datasets.Recipe(tree=6 * MIB, image=24 * MIB, random=MIB, seed=3, synthetic=True))
    assert first["tree.1"] != again["tree.1"]
    for name in ("tree.1", "tree.2"):
        assert digest_tree(tmp_path / name) == digest_tree(made / name)


def test_the_changed_block_map_is_exact(made: Path) -> None:
    """The old image with the listed blocks of the new one is the new one, and the image kept its holes."""
    one, two = made / "image.1", made / "image.2"
    extents = disk.changed_extents(one, two)
    patched = bytearray(one.read_bytes())
    new = two.read_bytes()
    assert 0 < sum(length for _, length in extents) < len(new) // 2
    for offset, length in extents:
        patched[offset : offset + length] = new[offset : offset + length]
    assert bytes(patched) == new
    assert one.stat().st_blocks * 512 < one.stat().st_size
    assert memory.digest_sparse(one) != memory.digest_sparse(two)


@pytest.mark.parametrize("which", ["tree", "image", "random"])
def test_the_live_folder_changes_in_place(made: Path, tmp_path: Path, which: str) -> None:
    """Forth and back it is equal to the generation asked for; files that did not change keep inode and ctime."""
    live.put(made, which, 1, tmp_path / "live")
    first = digest_tree(tmp_path / "live")
    before = {path: path.lstat() for path in (tmp_path / "live").rglob("*") if path.is_file()}
    live.put(made, which, 2, tmp_path / "live")
    if which == "tree":
        assert digest_tree(tmp_path / "live") == digest_tree(made / "tree.2")
        kept = [path for path, old in before.items() if path.exists() and path.lstat().st_ctime_ns == old.st_ctime_ns]
        assert len(kept) > 0.9 * len(before)
    else:
        name = {"image": "image.raw", "random": "random.bin"}[which]
        assert (tmp_path / "live" / name).read_bytes() == (made / f"{which}.2").read_bytes()
        assert (tmp_path / "live" / name).stat().st_ino == before[tmp_path / "live" / name].st_ino
    live.put(made, which, 1, tmp_path / "live")
    assert digest_tree(tmp_path / "live") == first


def test_links_and_empty_folders_are_brought_along(tmp_path: Path) -> None:
    """Links are made anew where their target changed; what the wanted tree has not, goes."""
    wanted, folder = tmp_path / "wanted", tmp_path / "live"
    (wanted / "sub").mkdir(parents=True)
    (wanted / "link").symlink_to("nowhere")
    (wanted / "to-folder").symlink_to("sub")
    (folder / "gone" / "deep").mkdir(parents=True)
    (folder / "link").symlink_to("elsewhere")
    (folder / "gone" / "file").write_text("x")
    live.make_equal(os.fsencode(wanted), os.fsencode(folder))
    assert sorted(path.name for path in folder.rglob("*")) == ["link", "sub", "to-folder"]
    assert os.readlink(folder / "link") == "nowhere"
    assert digest_tree(folder) == digest_tree(wanted)


def test_digests_see_names_content_and_link_targets(tmp_path: Path) -> None:
    """Each of the three makes another digest; the folder's own name does not."""
    digests = []
    for name, content, target in (("a", "1", "x"), ("b", "1", "x"), ("a", "2", "x"), ("a", "1", "y"), ("a", "1", "x")):
        top = tmp_path / f"tree{len(digests)}"
        top.mkdir()
        (top / name).write_text(content)
        (top / "link").symlink_to(target)
        digests.append(digest_tree(top))
    assert len(set(digests)) == 4
    assert digests[0] == digests[-1]


def test_a_process_is_measured() -> None:
    """Its memory, CPU and exit code are its own, children it waited for included."""
    script = "b = b'x' * (200 << 20); import hashlib; hashlib.sha256(b).digest(); raise SystemExit(3)"
    cost = run(["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, script])
    assert cost.code == 3
    assert cost.rss_bytes > 200 << 20
    assert cost.cpu_s > 0.02
    assert cost.system_s < cost.cpu_s < cost.wall_s * 4
    assert run(["true"]).rss_bytes <= floor_bytes() + 16 * MIB  # see measure.py: what starts it is counted in
    assert run(["sh", "-c", "kill -9 $$"]).code == -9


def test_folders_are_weighed_by_length(tmp_path: Path) -> None:
    """Bytes and files below."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "sub" / "b").write_bytes(b"1")
    assert folder_size(tmp_path) == (6, 2)


def test_a_peer_that_cannot_be_had_is_left_out_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without apt, compilers and network the benchmark still runs, with what there is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert peers.fetch(tmp_path / "peers") == {}
    said = capsys.readouterr().err
    assert "restic is not obtainable here and is left out: there is no apt" in said
    assert "borg is not obtainable here and is left out: " in said


def test_programs_that_are_missing_are_not_run() -> None:
    """Without peers: ours and the limits, in this order; only ours is told of changed blocks, on the image alone."""
    programs = find_programs({})
    assert [program.name for program in programs if program.name != "tar-zstd"] == [
        "strongroom",
        "strongroom+cbt",
        "cp",
    ]
    assert programs[1].sets == ("image",)
    assert [program.is_limit for program in programs[:2]] == [False, False]


def test_the_seed_decides() -> None:
    """The same seed gives the same words."""
    assert datasets._words(random.Random(5), 1000) == datasets._words(random.Random(5), 1000)
    assert datasets._words(random.Random(5), 1000) != datasets._words(random.Random(6), 1000)
