"""What `recover` does: restore points found and restored from a store and a key file alone.

The store is never written: what has to be repaired for reading (a lost index) is put beside it, in memory. Nobody keeps
a running server's prune away from what is read here, so a restore point that is deleted meanwhile may fail; then it is
reported, and nothing wrong is ever restored.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import ConfigError, Corrupt, FormatUnknown, InvalidRequest, KeyWrong, ObjectMissing
from strongroom.base.units import human_bytes
from strongroom.cli.errors import CommandRefused, NameAmbiguous, NameUnknown
from strongroom.cli.output import Output, shown
from strongroom.config import load_settings
from strongroom.engine.catalogue import DomainPlace, Point, find_domains, list_points
from strongroom.engine.key_files import VaultKey, load_key, open_domain
from strongroom.engine.keys import MasterKey
from strongroom.engine.pool import Pool
from strongroom.engine.rebuild import RebuildReport, rebuild
from strongroom.engine.repository import Repository
from strongroom.engine.restore import restore_block, restore_tree
from strongroom.engine.store.base import Store
from strongroom.engine.store.open import open_store
from strongroom.engine.store.overlay import OverlayStore
from strongroom.sources.base import RestoreWanted, SourceRef, TargetReport
from strongroom.sources.open import driver_for

TREE_TYPE, DISK_TYPE = "OS::Sfs::Turbo", "OS::Cinder::Volume"
TELL_EVERY_S = 0.5  # lines of progress for programs
LABEL_NAMES = ("project", "vault", "vault_name", "resource", "resource_type", "resource_name", "path", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class OpenDomain:
    """One domain that the key opens."""

    place: DomainPlace
    repository: Repository
    points: list[Point]


class Progressing:
    """A Monitor that shows what it hears: a bar for people, `status` lines for programs."""

    def __init__(self, output: Output, text: str, bars: Progress | None) -> None:
        self._output = output
        self._text = text
        self._bars = bars
        self._task: TaskID | None = bars.add_task(text, total=None, amount="") if bars else None
        self._told_s = time.monotonic()

    def check(self) -> None:
        return None

    def advance(self, bytes_done: int, bytes_total: int, entries_done: int) -> None:
        if self._bars is not None and self._task is not None:
            amount = f"{human_bytes(bytes_done)} of {human_bytes(bytes_total)}" if bytes_total else f"{entries_done}"
            self._bars.update(self._task, completed=bytes_done, total=bytes_total or None, amount=amount)
        elif time.monotonic() - self._told_s >= TELL_EVERY_S:
            self._told_s = time.monotonic()
            counters = {"bytes_done": bytes_done, "bytes_total": bytes_total, "entries_done": entries_done}
            self._output.line("status", step=self._text, **counters)


@contextmanager
def progress(output: Output, text: str) -> Iterator[Progressing]:
    """Show one step."""
    if not output.live:
        yield Progressing(output, text, None)
        return
    amount = TextColumn("{task.fields[amount]}", markup=False)
    name = TextColumn("{task.description}", markup=False)
    with Progress(name, BarColumn(bar_width=24), amount, TimeElapsedColumn(), console=output.stderr) as bars:
        yield Progressing(output, text, bars)


def open_place(store: str) -> Store:
    """The store at a URL, or in a folder named by its path. It is not made when it is not there."""
    url = store if "://" in store else "file://" + quote(os.path.abspath(store))
    parts = urlsplit(url)
    folder = unquote(parts.path)
    if parts.scheme == "file" and not os.path.isdir(folder):
        raise ConfigError(reason=f"There is no store in {folder}.")
    # Only for s3: a wrong setting of a server must not stop who reads a folder.
    return open_store(url, load_settings({}, os.environ).s3 if parts.scheme == "s3" else None)


class Recovery:
    """A store and a key. `close` ends its threads."""

    def __init__(self, store: str, key_file: Path, output: Output) -> None:
        self._key: MasterKey | VaultKey = load_key(key_file)
        self._below = open_place(store)
        self._store = OverlayStore(self._below)
        self._output = output
        self._pool = Pool()

    def close(self) -> None:
        self._pool.close()

    def points(self, vault: str | None, *, check: bool) -> list[tuple[OpenDomain, Point]]:
        """Every restore point the key opens, with its domain, oldest first; those that do not open come last."""
        found = [(domain, point) for domain in self.domains(vault, check=check) for point in domain.points]
        return sorted(found, key=lambda pair: (pair[1].created_at is None, pair[1].created_at, pair[1].name))

    def domains(self, vault: str | None, *, check: bool) -> list[OpenDomain]:
        """Every domain the key opens. Raises the reason when it opens none of those there are."""
        opened, failures = [], []
        for place in find_domains(self._store):
            try:
                repository = open_domain(self._store, place.prefix, place.id, self._key, pool=self._pool)
                if check:
                    self.mend(repository)
                points = self._points(repository, check)
            except (KeyWrong, FormatUnknown, ObjectMissing, Corrupt) as err:
                failures.append(err)
                continue
            if vault is None or vault in _names_of(place, points):
                opened.append(OpenDomain(place=place, repository=repository, points=points))
        if failures and not opened:
            raise failures[0]
        for failure in failures:
            if not isinstance(failure, KeyWrong):  # other vaults have other keys; that is no news
                self._output.warn(failure.message)
        return opened

    def mend(self, repository: Repository) -> RebuildReport:
        """Make the index whole in memory, if it is not in the store."""
        with progress(self._output, "Reading the index") as monitor:
            report = rebuild(repository, monitor)
        if report.list_written or report.packs_read:
            self._output.note(f"The index was rebuilt in memory from {report.packs_read} packs.")
        for pack, reason in report.packs_damaged:
            self._output.warn(f"Pack {pack} cannot be used: {reason}")
        return report

    def mend_in_place(self, vault: str | None) -> list[tuple[DomainPlace, RebuildReport]]:
        """Make the index whole in the store itself."""
        done = []
        for domain in self.domains(vault, check=False):
            repository = open_domain(self._below, domain.place.prefix, domain.place.id, self._key, pool=self._pool)
            with progress(self._output, "Rebuilding the index") as monitor:
                done.append((domain.place, rebuild(repository, monitor)))
        return done

    def find(self, name: str, vault: str | None) -> tuple[OpenDomain, Point]:
        """The restore point of this backup id, root name or backup name that can be relied on most.

        Its domain's index is whole on return. Raises NameUnknown, NameAmbiguous.
        """
        found = [
            (d, p)
            for d, p in self.points(vault, check=False)
            if name in (p.name, p.backup_id, _label(p, "name", "label"))
        ]
        if not found:
            raise NameUnknown(kind="restore point", name=name, command="strongroom recover list")
        if len({(d.place.prefix, p.backup_id) for d, p in found}) > 1:
            ids = ", ".join(f"{p.backup_id} in {d.place.prefix}" for d, p in found)
            raise NameAmbiguous(kind="backup", name=name, ids=ids)
        domain, _ = found[0]
        self.mend(domain.repository)
        checked = self._points(domain.repository, True, frozenset(point.name for _, point in found))
        # By the name of a root its owner wants that one; else the generation that counts, else the best there is.
        order = sorted(checked, key=lambda p: (p.name == name, p.counts, p.state != "unreadable", p.generation))
        return domain, order[-1]

    def _points(self, repository: Repository, check: bool, only: frozenset[str] | None = None) -> list[Point]:
        if not check:
            return list_points(repository, check=False)
        with progress(self._output, "Checking restore points") as monitor:
            return list_points(repository, check=True, only=only, monitor=monitor)


def restore_point(
    repository: Repository, point: Point, dest: str, path: str | None, output: Output
) -> tuple[Mapping[str, object], TargetReport]:
    """Restore into a new folder or image file: (what was done, what was left out)."""
    selection = tuple(part for part in os.fsencode(path or "").split(b"/") if part)
    if selection and point.kind != "tree":
        raise InvalidRequest(reason="Only a folder's backup has paths.")
    dest = os.path.abspath(dest)
    require_new(dest, point.kind)
    resource_type = TREE_TYPE if point.kind == "tree" else DISK_TYPE
    driver = driver_for(resource_type, os.fsencode(dest))
    wanted = RestoreWanted(
        task_id=f"recover-{os.getpid()}",
        target=SourceRef(resource_id="recover", type=driver.type, path=os.fsencode(dest)),
        same_resource=True,
        kind=point.kind,
        size_bytes=point.size,
        entries=point.entries,
        selection=(selection,) if selection else (),
    )
    plan = driver.plan_restore(wanted)
    with progress(output, f"Restoring {point.backup_id}") as monitor, driver.open_target(plan) as target:
        if target.kind == "tree":
            report = restore_tree(repository, point.name, target.stream, path=selection, monitor=monitor)  # type: ignore[arg-type]
        else:
            report = restore_block(repository, point.name, target.stream, monitor=monitor)  # type: ignore[arg-type]
        done = target.finish()
    for warning in dict.fromkeys((*plan.warnings, *report.warnings, *done.warnings)):
        output.warn(warning)
    return {"bytes": report.bytes, "entries": report.entries, "left_out": len(done.left_out)}, done


def require_new(dest: str, kind: str) -> None:
    """Nothing is ever overwritten by a recovery: an empty or new folder, or the name of a new file."""
    if kind == "tree":
        try:
            os.makedirs(dest, exist_ok=True)
            empty = not os.listdir(dest)
        except OSError as err:
            raise CommandRefused(reason=f"{dest} cannot be used as a folder: {err.strerror}.") from err
        if not empty:
            raise CommandRefused(reason=f"{dest} is not empty. Name an empty or new folder.")
    elif os.path.lexists(dest):
        raise CommandRefused(reason=f"{dest} exists. Name a new file; nothing is overwritten.")


def row(domain: OpenDomain, point: Point) -> dict[str, object]:
    """A restore point for a table or a program."""
    labels = {name: text(point.labels.get(name)) for name in LABEL_NAMES}
    labels["path"] = text(_label(point, "path", "source"))
    parts = domain.place.prefix.rstrip("/").split("/")
    if labels["vault"] is None and parts[0] == "vaults" and len(parts) == 3:
        labels |= {"project": parts[1], "vault": parts[2]}
    return {
        "backup": point.backup_id,
        "name": text(_label(point, "name", "label")),
        **labels,
        "created_at": point.labels.get("created_at") or (api_timestamp(point.created_at) if point.created_at else None),
        "kind": point.kind,
        "size": point.size,
        "entries": point.entries,
        "bytes_stored": point.bytes_stored,
        "state": point.state,
        "reason": point.reason,
        "counts": point.counts,
        "root": point.name,
        "domain": domain.place.id.hex(),
        "place": domain.place.prefix,
    }


def _label(point: Point, service: str, engine: str) -> object:
    """What the service calls it, or a repository of `strongroom engine`."""
    return point.labels.get(service) or point.labels.get(engine)


def details(domain: OpenDomain, point: Point) -> dict[str, object]:
    """`row` with every label, and what the backup reported."""
    found = row(domain, point) | {"labels": {str(k): text(v) for k, v in point.labels.items() if k != "token"}}
    if point.state != "unreadable":
        report = domain.repository.load_root(point.name).report
        found |= {"changed_while_read": report.changed_while_read_count, "skipped": report.skipped_count}
    return found


def text(value: object) -> object:
    """A label as JSON can carry it: stray bytes as \\xNN."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return {str(name): text(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [text(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else shown(value)


def _names_of(place: DomainPlace, points: Sequence[Point]) -> set[object]:
    """By what a vault may be called: its id, its name, its place."""
    own = {label for point in points for label in (point.labels.get("vault"), point.labels.get("vault_name"))}
    return own | {place.prefix, place.prefix.rstrip("/"), place.prefix.rstrip("/").rpartition("/")[2]}
