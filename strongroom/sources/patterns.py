"""Exclude patterns of a folder: like .gitignore, without negation. Bytes throughout, upper and lower case differ.

    *.tmp        no slash inside: the NAME of a file or folder at any depth
    cache/       a slash at the end: folders only
    /var/spool   a slash at the front or inside: the PATH from the registered folder on
    a/**/b       `**` as a part of its own: any number of folders, none included

Within one part of a path `*`, `?`, `[abc]`, `[!abc]` are those of fnmatch; `*` does not cross a slash. What matches is
left out with everything below it.
"""

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from strongroom.base.errors import InvalidRequest
from strongroom.base.streams import Path

PATTERNS_MAX = 256  # each is tried on every entry of a walk
PATTERN_BYTES_MAX = 1024

_Part = re.Pattern[bytes] | None  # None is `**`


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """parts: compiled parts of the path, one alone is a name; anchored: from the root on; folders: only those match."""

    parts: tuple[_Part, ...]
    anchored: bool
    folders: bool

    def matches(self, parent: Path, name: bytes, *, is_folder: bool) -> bool:
        """True when the entry `name` in the folder `parent` is to be left out."""
        if self.folders and not is_folder:
            return False
        last = self.parts[-1]
        if last is not None and last.match(name) is None:
            return False
        return not self.anchored or _path_matches(self.parts, (*parent, name))


def compile_patterns(texts: Sequence[str]) -> tuple[Pattern, ...]:
    """Raises InvalidRequest naming the pattern that cannot be used."""
    if len(texts) > PATTERNS_MAX:
        raise InvalidRequest(reason=f"At most {PATTERNS_MAX} exclude patterns are allowed.")
    return tuple(_compile(text) for text in texts)


def is_excluded(patterns: Sequence[Pattern], parent: Path, name: bytes, *, is_folder: bool) -> bool:
    """True when any pattern matches."""
    return any(pattern.matches(parent, name, is_folder=is_folder) for pattern in patterns)


def _compile(text: str) -> Pattern:
    raw = os.fsencode(text)
    body = raw.strip(b"/")
    if not body or len(raw) > PATTERN_BYTES_MAX or b"\0" in raw or raw.startswith(b"!"):
        raise InvalidRequest(
            reason=f"The exclude pattern {text!r} is empty, too long, or begins with an exclamation mark."
        )
    parts = body.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        raise InvalidRequest(reason=f"The exclude pattern {text!r} has an empty part, '.' or '..' in its path.")
    compiled = tuple(None if part == b"**" else _part(part) for part in parts)
    anchored = raw.startswith(b"/") or len(parts) > 1
    return Pattern(parts=compiled, anchored=anchored, folders=raw.endswith(b"/"))


def _part(glob: bytes) -> re.Pattern[bytes]:
    # fnmatch.translate makes expressions that cannot backtrack without bound; latin-1 maps bytes one to one.
    return re.compile(fnmatch.translate(glob.decode("latin-1")).encode("latin-1"))


def _path_matches(parts: tuple[_Part, ...], path: Path) -> bool:
    """Match whole paths, part by part; `reached` holds the numbers of parts used up so far, so it is parts x depth."""
    reached = _skip_stars(parts, {0})
    for name in path:
        following = set()
        for index in reached:
            if index == len(parts):
                continue
            part = parts[index]
            if part is None:
                following.add(index)
                if index + 1 == len(parts):
                    following.add(index + 1)  # at the end it stands for one or more: `a/**` leaves `a` itself alone
            elif part.match(name) is not None:
                following.add(index + 1)
        reached = _skip_stars(parts, following)
        if not reached:
            return False
    return len(parts) in reached


def _skip_stars(parts: tuple[_Part, ...], reached: set[int]) -> set[int]:
    """`**` may stand for nothing, but not as the last part: go past it."""
    out = set(reached)
    for index in range(len(parts) - 1):
        if index in out and parts[index] is None:
            out.add(index + 1)
    return out
