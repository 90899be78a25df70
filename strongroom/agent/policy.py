"""What the owner of this host allows, read from a file that only root can change. The server is not asked.

paths = ["/etc", "/srv"]          # what may be read: these and what is below
restore = false                   # whether anything may be written here
restore_paths = ["/srv"]          # where; without it, `paths`

[hooks]                           # programs of this host, run around a backup
before-backup = ["/usr/local/sbin/dump-database", "--quiet"]
after-backup = ["/usr/local/sbin/remove-dump"]
timeout_s = 600
"""

import json
import os
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strongroom.base.errors import ConfigError, SourceDenied, TargetDenied
from strongroom.sources.oserrors import shown

FILE_BYTES_MAX = 256 * 1024
LIST_MAX = 256
HOOKS = ("before-backup", "after-backup")
HOOK_S_DEFAULT = 600
HOOK_S_MAX = 86_400
DEVICES = b"/dev"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """paths and restore_paths: absolute, in normal form. hooks: name -> argument vector. own: folders of the agent."""

    paths: tuple[bytes, ...]
    restore: bool
    restore_paths: tuple[bytes, ...]
    hooks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hook_s: float = HOOK_S_DEFAULT
    own: tuple[bytes, ...] = ()

    def require_readable(self, path: bytes, *, disk: bool = False) -> None:
        """Raises SourceDenied. disk: `paths` has to name it, or /dev: `/` means files, and a disk holds what is not
        read of them, the agent's own among it."""
        if not any(is_at_or_below(path, allowed) for allowed in _of_disks(self.paths, disk=disk)):
            raise SourceDenied(
                reason=f"The host does not allow its agent to read {shown(path)}. Add it to `paths` in its agent.toml."
            )

    def require_writable(self, path: bytes, *, disk: bool = False) -> None:
        """Raises TargetDenied. disk: as above."""
        if not self.restore:
            raise TargetDenied(
                reason="The host does not allow restores. Set `restore = true` in its agent.toml, restore, and set it "
                "back."
            )
        if not any(is_at_or_below(path, allowed) for allowed in _of_disks(self.restore_paths, disk=disk)):
            raise TargetDenied(
                reason=f"The host does not allow restores into {shown(path)}. Add it to `restore_paths` in its "
                "agent.toml."
            )

    def require_foreign(self, path: bytes) -> None:
        """Raises TargetDenied for what is the agent's own: who could write there would decide what is allowed."""
        if any(is_at_or_below(path, own) for own in self.own):
            raise TargetDenied(reason=f"{shown(path)} belongs to the agent itself, which no restore may change.")


def load_policy(file: Path, own: Sequence[Path] = ()) -> Policy:
    """Raises ConfigError: missing, not root's, writable by others, or not understood."""
    require_roots(file)
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(reason=f"{file} is larger than {FILE_BYTES_MAX} bytes.")
        table = tomllib.loads(data.decode())
    except OSError as err:
        raise ConfigError(reason=f"{file} cannot be read: {err.strerror}.") from err
    except ValueError as err:
        raise ConfigError(reason=f"{file} is not valid TOML: {err}.") from err
    unknown = set(table) - {"paths", "restore", "restore_paths", "hooks"}
    if unknown:
        raise ConfigError(reason=f"{file} has {min(unknown)}, which is not a setting of the agent.")
    paths = _paths(table.get("paths", []), "paths", file)
    restore = table.get("restore", False)
    if not isinstance(restore, bool):
        raise ConfigError(reason=f"`restore` in {file} must be true or false.")
    hooks, hook_s = _hooks(table.get("hooks", {}), file)
    return Policy(
        paths=paths,
        restore=restore,
        restore_paths=_paths(table["restore_paths"], "restore_paths", file) if "restore_paths" in table else paths,
        hooks=hooks,
        hook_s=hook_s,
        own=tuple(os.fsencode(os.path.realpath(place)) for place in (file.parent, *own)),
    )


def write_policy(file: Path, paths: Sequence[str], *, restore: bool) -> None:
    """A new file that allows these paths. Raises ConfigError for one that is there, and for paths that are none."""
    try:
        lines = [json.dumps(os.fsdecode(normal(os.fsencode(path))), ensure_ascii=False) for path in paths]
    except ValueError as err:
        raise ConfigError(reason="--allow needs absolute paths without `..`.") from err
    text = f"paths = [{', '.join(lines)}]\nrestore = {str(restore).lower()}\n"
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except FileExistsError as err:
        raise ConfigError(reason=f"{file} is there already. Edit it, and leave out --allow.") from err
    except OSError as err:
        raise ConfigError(reason=f"{file} cannot be written: {err.strerror}.") from err
    with os.fdopen(fd, "w") as out:
        out.write(text)


def require_roots(file: Path) -> None:
    """Raises ConfigError unless only root can change the file, or put another one in its place."""
    path = file.absolute()
    for place in (path, *path.parents):
        try:
            info = os.lstat(place)
        except OSError as err:
            raise ConfigError(
                reason=f"{place} cannot be looked at: {err.strerror}. Make it with `strongroom agent enroll --allow "
                "PATH`, or write it yourself."
            ) from err
        if stat.S_ISLNK(info.st_mode):
            raise ConfigError(reason=f"{place} is a symbolic link. Name the place it leads to.")
        if info.st_uid != 0:
            raise ConfigError(reason=f"{place} must belong to root: who can change it decides what the agent does.")
        sticky = place != path and stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            raise ConfigError(reason=f"{place} can be written by others than root. Take that away: chmod go-w {place}")


def _of_disks(allowed: Sequence[bytes], *, disk: bool) -> Sequence[bytes]:
    return [path for path in allowed if is_at_or_below(path, DEVICES)] if disk else allowed


def is_at_or_below(path: bytes, place: bytes) -> bool:
    return path == place or path.startswith(place.rstrip(b"/") + b"/")


def normal(path: bytes) -> bytes:
    """One spelling, or ValueError for what is not absolute or leads up."""
    parts = path.split(b"/")
    if not path.startswith(b"/") or b".." in parts or b"\0" in path or len(path) > 4096:
        raise ValueError("not an absolute path without ..")
    return b"/" + b"/".join(part for part in parts if part not in (b"", b"."))


def _paths(value: Any, name: str, file: Path) -> tuple[bytes, ...]:
    try:
        if not isinstance(value, list) or len(value) > LIST_MAX:
            raise ValueError("not a list")
        return tuple(normal(os.fsencode(str(item))) for item in value)
    except ValueError as err:
        raise ConfigError(reason=f"`{name}` in {file} must be a list of absolute paths without `..`.") from err


def _hooks(value: Any, file: Path) -> tuple[dict[str, tuple[str, ...]], float]:
    if not isinstance(value, dict) or set(value) - {*HOOKS, "timeout_s"}:
        raise ConfigError(reason=f"[hooks] in {file} may have {', '.join(HOOKS)} and timeout_s.")
    hook_s = value.get("timeout_s", HOOK_S_DEFAULT)
    if not isinstance(hook_s, int) or not 0 < hook_s <= HOOK_S_MAX:
        raise ConfigError(reason=f"timeout_s in {file} must be a number of seconds up to {HOOK_S_MAX}.")
    hooks = {}
    for name in HOOKS:
        if name not in value:
            continue
        words = value[name]
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise ConfigError(reason=f"`{name}` in {file} must be a list: a program and its arguments.")
        if not words[0].startswith("/"):
            raise ConfigError(reason=f"`{name}` in {file} must name its program with its whole path.")
        require_roots(Path(os.path.realpath(words[0])))
        hooks[name] = tuple(words)
    return hooks, float(hook_s)
