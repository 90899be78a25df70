"""`strongroom engine`: a repository in a folder, without a server. Also what benchmarks run.

    engine init REPO
    engine backup REPO SRC LABEL [--cbt FILE] [--exclude PATTERN]... [--full]
    engine restore REPO LABEL DEST [--path PATH] [--force]
    engine cat REPO LABEL [PATH] [--offset N] [--length N]
    engine list REPO
    engine delete REPO LABEL
    engine verify REPO [--shallow] [--sample PERCENT]
    engine scrub REPO [--sample PERCENT]
    engine repair REPO --from OTHER
    engine prune REPO [--dry-run]
    engine copy REPO DEST [--label LABEL]... [--dest-key FILE]
    engine shred REPO --yes

The repository's key lies in it (`.master.key`), unless --key names another file. So do copies of a large index
(`.cache`), which may be deleted at any time. Modules are imported by the command that needs them: what finds nothing
changed is over in the time Python takes to start. Exit codes as in docs/CLI.md.
"""

import argparse
import ctypes
import gc
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from strongroom.base.errors import Canceled, ConfigError, Conflict, InvalidRequest, StrongroomError
from strongroom.base.streams import Monitor, SilentMonitor
from strongroom.base.units import human_bytes
from strongroom.cli.engine_domains import KEY_FILE, add_commands
from strongroom.cli.engine_reads import add_cat, cat

if TYPE_CHECKING:
    from strongroom.engine import ChangedBlocks, Repository, Root
    from strongroom.sources.base import Driver, SourceRef

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_PARTLY_DONE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

CACHE_FOLDER = ".cache"  # dot names are none of the store's
LABEL, SOURCE = "label", "source"  # keys of our labels
CBT_BYTES_MAX = 256 << 20
CBT_EXTENTS_MAX = 8 << 20

# glibc: big buffers stay on the heap, so that each segment does not fault its pages in anew; few arenas, for memory.
_MALLOC = {-3: 1 << 30, -1: 256 << 20, -8: 2}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX

PROGRESS_S = 0.25  # between two writings of the progress line
GC_THRESHOLD = 100_000  # a walk makes entries by the hundred thousand and no cycles

Summary = Mapping[str, object]


def run(argv: list[str]) -> int:
    """Run one command line (without `engine`); the exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_USAGE
    _tune_malloc()
    gc.freeze()  # what the imports made stays
    gc.set_threshold(GC_THRESHOLD)
    command: Callable[[argparse.Namespace], tuple[int, Summary]] = options.command
    try:
        code, summary = command(options)
    except StrongroomError as err:
        _print_error(err, options.json)
        return EXIT_INTERRUPTED if isinstance(err, Canceled) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if options.json:
        print(json.dumps({"message_type": "summary", **summary}))
    return code


def _tune_malloc() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="strongroom engine", description="A repository without a server.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], object], text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.add_argument("repo", metavar="REPO", help="folder of the repository")
        found.add_argument("--key", metavar="FILE", help=f"master key file (default: REPO/{KEY_FILE})")
        found.add_argument("--json", action="store_true", help="print one JSON object at the end")
        found.set_defaults(command=command)
        return found

    init = add("init", _init, "Make a repository.")
    init.add_argument("--level", type=int, default=3, choices=(1, 3), help="zstd level: 1 fast, 3 dense (default)")
    backup = add("backup", _backup, "Back up a folder, an image file or a block device.")
    backup.add_argument("src", metavar="SRC")
    backup.add_argument("label", metavar="LABEL", help="name of the backup, unique in the repository")
    backup.add_argument("--cbt", metavar="FILE", help="JSON list of changed blocks: {base, size, extents}")
    backup.add_argument("--exclude", metavar="PATTERN", action="append", default=[], help="leave out; repeatable")
    backup.add_argument("--full", action="store_true", help="read everything, trust no earlier backup")
    restore = add("restore", _restore, "Restore a backup into an empty or new folder, or over an image.")
    restore.add_argument("label", metavar="LABEL")
    restore.add_argument("dest", metavar="DEST")
    restore.add_argument("--path", metavar="PATH", help="only this entry of a tree")
    restore.add_argument("--force", action="store_true", help="also where space seems short (sparse files), or in use")
    add("list", _list, "List the backups.")
    delete = add("delete", _delete, "Delete a backup; `prune` frees its bytes.")
    delete.add_argument("label", metavar="LABEL")
    verify = add("verify", _verify, "Read every pack and every backup, and compare.")
    verify.add_argument("--shallow", action="store_true", help="metadata and sizes only, no content")
    verify.add_argument("--sample", metavar="PERCENT", type=float, default=100.0, help="share of the data to read")
    scrub = add("scrub", _scrub, "Compare every object with the digest of what was written; needs no key.")
    scrub.add_argument("--sample", metavar="PERCENT", type=float, default=100.0, help="share of the packs to read")
    repair = add("repair", _repair, "Bring back what is damaged or lost from another copy of the repository.")
    repair.add_argument("--from", dest="other", metavar="OTHER", required=True, help="folder of the other copy")
    repair.add_argument("--from-key", metavar="FILE", help="its master key file (default: OTHER/.master.key)")
    prune = add("prune", _prune, "Free what no backup needs.")
    prune.add_argument("--dry-run", action="store_true", help="only tell what becomes of which pack, and why")
    add_cat(add, lambda options: cat(options, *_find_in_any(options)))
    add_commands(add, _copy, _shred)
    return parser


# --- commands ---


def _init(options: argparse.Namespace) -> tuple[int, Summary]:
    from strongroom.engine import DomainSettings, MasterKey, create_repository
    from strongroom.engine.store.open import open_store

    store = open_store(_url(options.repo))
    key_file = _key_file(options)
    master = MasterKey.load(key_file) if options.key and os.path.exists(key_file) else MasterKey.create(key_file)
    repository = create_repository(store, "", master, DomainSettings(level=options.level))
    return EXIT_OK, {"domain": repository.domain.id.hex()}


def _backup(options: argparse.Namespace) -> tuple[int, Summary]:
    from strongroom.engine.backup import backup
    from strongroom.engine.model import BackupRequest
    from strongroom.sources.base import PointWanted

    repository = _open(options)
    source = os.path.realpath(options.src)
    roots = _roots(repository)
    if any(root.labels.get(LABEL) == options.label for root in roots):
        raise Conflict(reason=f"There is a backup with the label {options.label} already.", conflict_code="9900")
    own = [root for root in roots if root.labels.get(SOURCE) == source]
    parent = max(own, key=lambda root: root.created_at, default=None)
    token = parent.labels.get("token") if parent else None
    blocks = _load_changed_blocks(options.cbt) if options.cbt else None
    driver, ref = _driver(source, tuple(options.exclude))
    wanted = PointWanted(parent_token=token if isinstance(token, bytes) else None, full=options.full)
    with driver.open_point(ref, wanted) as point:
        trusted = parent if parent and not point.full_reason else None
        request = BackupRequest(
            backup_id=os.urandom(16).hex(),
            generation=1,
            parent=trusted.name if trusted else None,
            full=options.full,
            labels={LABEL: options.label, SOURCE: source, "token": point.token},
            changed_blocks=blocks,
        )
        report = backup(repository, point.stream, request, _monitor(options), lambda: None)
        changed = point.metadata.get("changed_while_read")
        point.commit()
    repository.close()
    if report.full_reason and not options.json:
        print(f"Read in full: {report.full_reason}.", file=sys.stderr)
    _say(
        options,
        f"Backed up {report.entries} entries, {human_bytes(report.bytes_total)}: "
        f"read {human_bytes(report.bytes_read)}, new {human_bytes(report.bytes_new)}, "
        f"stored {human_bytes(report.bytes_stored)}.",
    )
    for path in report.changed_while_read:
        print(f"Changed while it was read: {_text(path)}", file=sys.stderr)
    summary = {
        "root": report.root,
        "bytes_total": report.bytes_total,
        "bytes_read": report.bytes_read,
        "bytes_new": report.bytes_new,
        "bytes_stored": report.bytes_stored,
        "entries": report.entries,
        "folders": report.folders,
        "changed_while_read": report.changed_while_read_count or int(bool(changed)),
        "skipped": report.skipped_count,
        "vanished": report.vanished,
        "full_reason": report.full_reason or point.full_reason,
    }
    return (EXIT_PARTLY_DONE if summary["changed_while_read"] else EXIT_OK), summary


class _TerminalMonitor:
    """One line on a terminal, written again a few times a second. Implements base.streams.Monitor."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def advance(self, bytes_done: int, bytes_total: int, entries_done: int) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + PROGRESS_S
        of = f" of {human_bytes(bytes_total)}" if bytes_total else ""
        sys.stderr.write(f"\r\x1b[K{human_bytes(bytes_done)}{of}, {entries_done} entries\r")
        sys.stderr.flush()

    def check(self) -> None:
        return None


def _say(options: argparse.Namespace, text: str) -> None:
    """For people; programs get the summary of --json."""
    if options.json:
        return
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
    print(text)


def _monitor(options: argparse.Namespace) -> Monitor:
    return _TerminalMonitor() if sys.stderr.isatty() and not options.json else SilentMonitor()


def _restore(options: argparse.Namespace) -> tuple[int, Summary]:
    from strongroom.base.streams import Path
    from strongroom.engine.restore import restore_block, restore_tree
    from strongroom.sources.base import RestoreWanted

    repository, root = _find_in_any(options)
    path: Path = tuple(os.fsencode(part) for part in (options.path or "").split("/") if part)
    if root.kind == "tree":
        _require_empty(options.dest)
    elif path:
        raise InvalidRequest(reason="Only a tree has paths.")
    driver, ref = _driver(os.path.abspath(options.dest), (), kind=root.kind)
    wanted = RestoreWanted(
        task_id=f"engine-{os.getpid()}",
        target=ref,
        same_resource=True,
        kind=root.kind,
        size_bytes=root.size,
        entries=root.report.entries,
        selection=(path,) if path else (),
        force=options.force,
    )
    with driver.open_target(driver.plan_restore(wanted)) as target:
        if root.kind == "tree":
            report = restore_tree(
                repository,
                root.name,
                target.stream,  # type: ignore[arg-type]
                path=path,
                monitor=_monitor(options),
            )
        else:
            report = restore_block(repository, root.name, target.stream, _monitor(options))  # type: ignore[arg-type]
        done = target.finish()
    repository.close()
    _say(options, f"Restored {report.entries} entries, {human_bytes(report.bytes)}.")
    for item in done.left_out:
        print(f"Left out: {_text(item.path)}: {item.reason}", file=sys.stderr)
    for warning in (*report.warnings, *done.warnings):
        print(warning, file=sys.stderr)
    code = EXIT_PARTLY_DONE if done.left_out else EXIT_OK
    return code, {"bytes": report.bytes, "entries": report.entries, "left_out": len(done.left_out)}


def _list(options: argparse.Namespace) -> tuple[int, Summary]:
    found = [(root, own) for own, repository in enumerate(_open_all(options)) for root in _roots(repository)]
    found.sort(key=lambda pair: pair[0].created_at)
    rows = [
        {
            "label": root.labels.get(LABEL),
            "root": root.name,
            "kind": root.kind,
            "source": root.labels.get(SOURCE),
            "created_at": root.created_at.isoformat(timespec="seconds"),
            "size": root.size,
            "bytes_stored": root.report.bytes_stored,
            "copied": own > 0,
        }
        for root, own in found
    ]
    if not options.json:
        for row in rows:
            print("\t".join(str(row[key]) for key in ("label", "created_at", "kind", "size", "bytes_stored", "source")))
    return EXIT_OK, {"backups": rows}


def _delete(options: argparse.Namespace) -> tuple[int, Summary]:
    repository, root = _find_in_any(options)
    repository.delete_root(root.name)
    return EXIT_OK, {"root": root.name}


def _verify(options: argparse.Namespace) -> tuple[int, Summary]:
    from strongroom.cli.engine_domains import summed
    from strongroom.cli.engine_proofs import run_verify

    opened = _open_all(options)
    outcomes = [run_verify(options, repository, _monitor(options)) for repository in opened]
    opened[0].close()
    _say(options, "\n".join(line for _, _, lines in outcomes for line in lines))
    return max(code for code, _, _ in outcomes), summed([summary for _, summary, _ in outcomes])


def _repair(options: argparse.Namespace) -> tuple[int, Summary]:
    from strongroom.cli.engine_proofs import run_repair

    repository = _open(options)
    code, summary, lines = run_repair(options, repository, _url(options.other), _monitor(options))
    repository.close()
    _say(options, "\n".join(lines))
    return code, summary


def _scrub(options: argparse.Namespace) -> tuple[int, Summary]:
    from strongroom.cli.engine_proofs import run_scrub

    code, summary, lines = run_scrub(options, _url(options.repo), _monitor(options))
    _say(options, "\n".join(lines))
    return code, summary


def _prune(options: argparse.Namespace) -> tuple[int, Summary]:
    from strongroom.cli.engine_pruning import run_plan, run_prune

    opened = _open_all(options)
    code, summary, lines = (run_plan if options.dry_run else run_prune)(opened, _monitor(options))
    opened[0].close()
    _say(options, "\n".join(lines))
    return code, summary


def _copy(options: argparse.Namespace) -> tuple[int, Summary]:
    from strongroom.cli.engine_domains import run_copy

    opened = _open_all(options)
    code, summary, text = run_copy(options, opened, LABEL, _monitor(options))
    opened[0].close()
    _say(options, text)
    return code, summary


def _shred(options: argparse.Namespace) -> tuple[int, Summary]:
    from strongroom.cli.engine_domains import run_shred

    code, summary, text = run_shred(options, _url(options.repo), _monitor(options))
    _say(options, text)
    return code, summary


# --- what they share ---


def _url(repo: str) -> str:
    from urllib.parse import quote

    return "file://" + quote(os.path.abspath(repo))


def _key_file(options: argparse.Namespace) -> str:
    return options.key or os.path.join(os.path.abspath(options.repo), KEY_FILE)


def _open(options: argparse.Namespace) -> "Repository":
    from strongroom.cli.engine_domains import folder_sessions
    from strongroom.engine.keys import MasterKey
    from strongroom.engine.open import open_repository
    from strongroom.engine.store.open import open_store

    if not os.path.isdir(options.repo):
        raise ConfigError(reason=f"There is no repository in {options.repo}. Make one: strongroom engine init.")
    master = MasterKey.load(_key_file(options))
    sessions = folder_sessions(options.repo, None)
    cache = os.path.join(os.path.abspath(options.repo), CACHE_FOLDER)
    return open_repository(open_store(_url(options.repo)), "", master, sessions=sessions, cache=cache)


def _open_all(options: argparse.Namespace) -> list["Repository"]:
    """The repository's own domain, then those that were copied into it. Closing the first closes all."""
    from strongroom.cli.engine_domains import foreign_repositories
    from strongroom.engine.keys import MasterKey

    own = _open(options)
    return [own, *foreign_repositories(own, options.repo, MasterKey.load(_key_file(options)))]


def _roots(repository: "Repository") -> list["Root"]:
    return [repository.load_root(name) for name in repository.root_names()]


def _find_in_any(options: argparse.Namespace) -> tuple["Repository", "Root"]:
    """The backup with the label: one of the repository's own before one that was copied into it."""
    for repository in _open_all(options):
        for root in _roots(repository):
            if options.label in (root.labels.get(LABEL), root.name):
                return repository, root
    raise InvalidRequest(reason=f"There is no backup with the label {options.label}.")


def _driver(path: str, exclude: tuple[str, ...], kind: str | None = None) -> tuple["Driver", "SourceRef"]:
    """The driver for what is at `path`; `kind` decides when a restore makes something new."""
    from strongroom.sources.base import SourceOptions, SourceRef

    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG if kind == "block" else stat.S_IFDIR
    options = SourceOptions(exclude=exclude)
    name = os.fsencode(path)
    if stat.S_ISDIR(mode) and kind != "block":
        from strongroom.sources.folder import FolderDriver

        return FolderDriver(), SourceRef(resource_id="engine", type=FolderDriver.type, path=name, options=options)
    if stat.S_ISBLK(mode):
        from strongroom.sources.device import DeviceDriver

        return DeviceDriver(), SourceRef(resource_id="engine", type=DeviceDriver.type, path=name, options=options)
    from strongroom.sources.image import ImageDriver

    return ImageDriver(), SourceRef(resource_id="engine", type=ImageDriver.type, path=name, options=options)


def _require_empty(dest: str) -> None:
    """Restoring into a folder makes it equal to the backup; without a server to ask, only an empty one is safe."""
    os.makedirs(dest, exist_ok=True)
    if os.listdir(dest):
        raise Conflict(reason=f"{dest} is not empty. Restore into an empty or new folder.", conflict_code="9900")


def _load_changed_blocks(path: str) -> "ChangedBlocks":
    """A JSON file {base: root name, size, extents: [[offset, length], ...]}; base and size may be missing."""
    from strongroom.engine.model import ChangedBlocks

    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size > CBT_BYTES_MAX:
                raise ValueError("it is too large")
            found = json.load(stream)
        extents = tuple((offset, length) for offset, length in found["extents"])
        if not all(isinstance(number, int) for extent in extents for number in extent):
            raise ValueError("an extent is two whole numbers")
        base, size = found.get("base"), found.get("size")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise InvalidRequest(reason=f"The file {path} is no list of changed blocks.", detail=str(err)) from err
    if len(extents) > CBT_EXTENTS_MAX or any(offset < 0 or length < 0 for offset, length in extents):
        raise InvalidRequest(reason=f"The file {path} has impossible or too many extents.")
    if not isinstance(base, str | None) or not isinstance(size, int | None):
        raise InvalidRequest(reason=f"The file {path} names a base or size of a wrong form.")
    return ChangedBlocks(base=base, size=size, extents=extents)


def _text(path: tuple[bytes, ...]) -> str:
    return b"/".join(path).decode(errors="backslashreplace")


def _print_error(err: StrongroomError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"message_type": "error", "code": err.published_code, "message": err.message}))
        return
    print(f"strongroom engine: {err.message}", file=sys.stderr)
    if err.detail:
        print(f"  {err.detail}", file=sys.stderr)
