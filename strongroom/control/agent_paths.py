r"""Paths on an agent's host, Unix (`/srv/data`) or Windows (`D:\data`): their form. Pure."""

import re
from collections.abc import Mapping, Sequence

from strongroom.base.errors import InvalidRequest

PATH_LENGTH_MAX = 4096  # of a Unix kernel; Windows allows more, with tricks nobody's folder needs
EXCLUDED_MAX = 64  # of one path
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def normal_path(text: str, member: str) -> str:
    r"""An absolute path in its one form: no empty parts, no separator at the end, `\` on Windows.

    Parts `.` and `..` are refused: what they mean is decided on the host, later, by links. Raises InvalidRequest.
    """
    if not text or len(text) > PATH_LENGTH_MAX or _CONTROL.search(text):
        raise InvalidRequest(reason=f"Invalid {member}: a path has 1 to {PATH_LENGTH_MAX} printable characters.")
    windows = _DRIVE.match(text) is not None
    if not windows and not text.startswith("/"):
        raise InvalidRequest(reason=f"Invalid {member}: give absolute paths, such as /srv/data or D:\\data.")
    parts = [part for part in (re.split(r"[\\/]", text) if windows else text.split("/")) if part]
    if {".", ".."} & set(parts):
        raise InvalidRequest(reason=f"Invalid {member}: give paths without . and .. parts.")
    if windows:
        return parts[0].upper() + "\\" + "\\".join(parts[1:])
    return "/" + "/".join(parts)


def is_below(path: str, folder: str) -> bool:
    """Whether a normal path lies in a normal folder; a folder does not lie in itself."""
    separator = "\\" if _DRIVE.match(folder) else "/"
    inside = folder if folder.endswith(separator) else folder + separator
    return path.startswith(inside) and path != inside


def normal_paths(texts: Sequence[str], member: str, count_max: int) -> dict[str, str]:
    """Normal form -> as it was given first. Raises InvalidRequest when there is none, or too many."""
    if not 0 < len(texts) <= count_max:
        raise InvalidRequest(reason=f"Invalid {member}: give 1 to {count_max} paths.")
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(normal_path(text, member), text)
    return found


def normal_exclusions(asked: Sequence[tuple[str, Sequence[str]]], paths: Mapping[str, str]) -> dict[str, list[str]]:
    """What to leave out, by normal path; each below a path of the same request. Raises InvalidRequest."""
    found: dict[str, list[str]] = {}
    for folder, excluded in asked:
        path = normal_path(folder, "exclude_path.path_name")
        if path not in paths:
            raise InvalidRequest(reason="Invalid exclude_path: its path_name is none of add_path.")
        below = [normal_path(text, "exclude_path.exclude_path_name") for text in excluded]
        if not all(is_below(text, path) for text in below):
            raise InvalidRequest(reason="Invalid exclude_path: what is left out lies below its path_name.")
        found.setdefault(path, []).extend(below)
        if len(found[path]) > EXCLUDED_MAX:
            raise InvalidRequest(reason=f"Invalid exclude_path: leave out at most {EXCLUDED_MAX} paths of one.")
    return {path: sorted(set(below)) for path, below in found.items()}
