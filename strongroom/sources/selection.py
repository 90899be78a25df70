"""Which part of a restore point goes where: the units that a folder restore moves into place, as pure values.

A **unit** is one name that is moved as a whole: every name in the root when all is restored, else each selected path.

    restore of all            staged new/NAME             -> root/NAME, and what the restore point lacks is removed
    selection a/b             staged new/a/b              -> root/a/b
    selection a/b, sub x      staged new/a/b              -> root/x/b
    all, sub x                staged new                  -> root/x
"""

from dataclasses import dataclass

from strongroom.base.errors import InvalidRequest, TargetDenied
from strongroom.base.streams import Path
from strongroom.sources.base import STAGING_PREFIX, RestoreWanted

SELECTION_MAX = 10_000  # paths of one restore request
NAME_BYTES_MAX = 255


@dataclass(frozen=True, kw_only=True)
class Unit:
    """staged: path below `new`, () is `new` itself. live: path below the root."""

    staged: Path
    live: Path


@dataclass(frozen=True, kw_only=True)
class Selection:
    """units: () means every name of the root, in place. lengths: of the staged paths, for the look-up."""

    units: tuple[Unit, ...]
    staged: frozenset[Path]
    above: frozenset[Path]
    lengths: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """The root folder itself becomes what the restore point says."""
        return not self.units

    def is_unit(self, path: Path) -> bool:
        return len(path) == 1 if self.whole else path in self.staged

    def is_above(self, path: Path) -> bool:
        """True for a folder that only leads to what is selected."""
        return path in self.above

    def holds(self, path: Path) -> bool:
        """True for what is restored: a unit or something inside of one."""
        return self.whole or any(path[:length] in self.staged for length in self.lengths)


def check_name(name: bytes) -> None:
    """Raises TargetDenied for a name that is no single name, or one of ours."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > NAME_BYTES_MAX:
        raise TargetDenied(reason=f"The restore point holds a name that would lead out of its folder: {name[:80]!r}.")
    if name.startswith(STAGING_PREFIX):
        raise TargetDenied(reason=f"The restore point holds a name that is reserved for restores: {name[:80]!r}.")


def select(wanted: RestoreWanted) -> Selection:
    """The units of a restore. Raises InvalidRequest, TargetDenied for paths that cannot be used."""
    if len(wanted.selection) > SELECTION_MAX:
        raise InvalidRequest(reason=f"At most {SELECTION_MAX} paths can be restored at a time.")
    for path in (*wanted.selection, wanted.sub_path or ()):
        for name in path:
            check_name(name)
    chosen = _outermost(wanted.selection)
    units: tuple[Unit, ...]
    if chosen in ((), ((),)):
        units = () if not wanted.sub_path else (Unit(staged=(), live=wanted.sub_path),)
    elif wanted.sub_path is None:
        units = tuple(Unit(staged=path, live=path) for path in chosen)
    else:
        units = tuple(Unit(staged=path, live=(*wanted.sub_path, path[-1])) for path in chosen)
    if len({unit.live for unit in units}) != len(units):
        raise InvalidRequest(
            reason="Two of the selected paths have the same last name. Restore them one after the other."
        )
    staged = frozenset(unit.staged for unit in units)
    return Selection(
        units=units,
        staged=staged,
        above=frozenset(path[:length] for path in staged for length in range(len(path))),
        lengths=tuple(sorted({len(path) for path in staged})),
    )


def _outermost(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Sorted, without those that lie inside of another one."""
    kept: list[Path] = []
    for path in sorted(set(paths)):
        if not kept or path[: len(kept[-1])] != kept[-1]:
            kept.append(path)
    return tuple(kept)
