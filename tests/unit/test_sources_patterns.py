"""Exclude patterns: what they match and what they refuse."""

import time

import pytest

from strongroom.base.errors import InvalidRequest
from strongroom.sources.patterns import PATTERNS_MAX, compile_patterns, is_excluded


def excluded(pattern: str, path: str, *, folder: bool = False) -> bool:
    *parent, name = path.encode("utf-8", "surrogateescape").split(b"/")
    return is_excluded(compile_patterns([pattern]), tuple(parent), name, is_folder=folder)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.tmp", ["a.tmp", "x/y/a.tmp", ".tmp"], ["a.tmp2", "tmp", "A.TMP"]),
        ("a?c", ["abc", "d/abc"], ["ac", "abbc"]),
        ("[ab]1", ["a1", "b1"], ["c1"]),
        ("[!ab]1", ["c1"], ["a1"]),
        ("/top", ["top"], ["x/top"]),
        ("var/spool", ["var/spool"], ["x/var/spool", "var/spool/x", "spool"]),
        ("a/*/c", ["a/b/c"], ["a/c", "a/b/b/c"]),
        ("a/**/c", ["a/c", "a/b/c", "a/b/b/c"], ["x/a/c", "a/b"]),
        ("**/cache", ["cache", "a/cache", "a/b/cache"], ["cache2"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b/a"]),
        ("name with space", ["name with space"], ["name"]),
        ("\udce9*", ["\udce9t\udce9"], ["e"]),
        (r"back\slash", [r"back\slash"], ["backslash"]),
    ],
)
def test_a_pattern_matches_names_or_paths_as_documented(pattern: str, matching: list[str], others: list[str]) -> None:
    """A pattern without a slash is for names, one with a slash for paths from the root on."""
    assert [path for path in matching if not excluded(pattern, path)] == []
    assert [path for path in others if excluded(pattern, path)] == []


def test_a_slash_at_the_end_matches_folders_only() -> None:
    """`cache/` leaves files of that name alone."""
    assert excluded("cache/", "a/cache", folder=True)
    assert not excluded("cache/", "a/cache", folder=False)


@pytest.mark.parametrize("pattern", ["", "/", "!keep", "a//b", "../x", "a/./b", "nul\0", "x" * 2000])
def test_a_pattern_that_means_nothing_is_refused(pattern: str) -> None:
    """The sentence names the pattern."""
    with pytest.raises(InvalidRequest, match="exclude pattern"):
        compile_patterns([pattern])


def test_too_many_patterns_are_refused() -> None:
    """Each costs time on every entry."""
    with pytest.raises(InvalidRequest):
        compile_patterns(["x"] * (PATTERNS_MAX + 1))


def test_a_pattern_cannot_make_the_walk_hang() -> None:
    """Many stars on a name of 255 bytes take no exponential time."""
    pattern = "/".join(["**"] * 100) + "/" + "*a" * 100 + "*b"
    begun = time.monotonic()
    assert not excluded(pattern, "/".join(["x"] * 200) + "/" + "a" * 255)
    assert time.monotonic() - begun < 2
