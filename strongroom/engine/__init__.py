"""The data plane: chunks, segments, packs, an index and roots in a store. It knows no tenant, no HTTP and no SQL.

The verbs, and the order in which a caller meets them (a POSIX store comes from `engine.store.open`):

    master = MasterKey.create(path) | MasterKey.load(path)
    repository = create_repository(store, prefix, master, DomainSettings())
               | open_repository(store, prefix, master, pool=None, sessions=None)
    report     = backup(repository, stream, BackupRequest(...), monitor, fence)
    root       = repository.find_root(backup_id, generation=None)        # adopt what an earlier attempt left, or None
    report     = restore_tree(repository, root_name, tree_target, path=(), monitor=...)
               | restore_block(repository, root_name, block_target, monitor)
    entries    = list_entries(repository, root_name, path, after=None, limit=1000)
    found      = entry(repository, root_name, path)                      # raises EntryNotFound
    reader     = open_reader(repository, root_name, cache_bytes=...)     # any bytes at random, while it is open
    pieces     = read_file(repository, root_name, path, offset=0, length=None)
    repository.load_root(name), .root_names(), .delete_root(name), .put_labels(backup_id, labels), .load_labels(root)
    report     = prune(repository, dead=names of roots that do not count, monitor=...)            # engine.prune
    bytes      = live_bytes(repository, names of roots that count)                               # engine.prune
    report     = verify(repository, roots or None, deep=..., monitor=...)                        # engine.verify
    report     = copy(source, store, prefix, master, roots or None, monitor, fence)               # engine.copy
    report     = rebuild(repository, monitor)               # the index, from packs alone            engine.rebuild
    places     = find_domains(store); points = list_points(repository, check=...)                # engine.catalogue

One Pool a process is shared by its repositories; sessions come from the service, or are a FlockSessions beside a POSIX
repository. docs/FORMAT.md has the bytes and the orders. A program that only backs up does not wait for the
modules of a restore: their names are loaded when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from strongroom.engine.backup import backup  # not lazy: its module has the same name and would win
from strongroom.engine.keys import MasterKey
from strongroom.engine.model import (
    BackupReport,
    BackupRequest,
    BrowsedEntry,
    ChangedBlocks,
    DomainSettings,
    RestoreReport,
    Root,
    Sessions,
)
from strongroom.engine.open import create_repository, open_repository
from strongroom.engine.pool import Pool
from strongroom.engine.repository import Repository, Session

if TYPE_CHECKING:
    from strongroom.engine.browse import entry, list_entries, read_file
    from strongroom.engine.reader import FileReader, Reader, open_reader
    from strongroom.engine.restore import restore_block, restore_tree
    from strongroom.engine.sessions import FlockSessions, ProcessSessions

_LAZY = {
    "FileReader": "reader",
    "Reader": "reader",
    "open_reader": "reader",
    "FlockSessions": "sessions",
    "ProcessSessions": "sessions",
    "entry": "browse",
    "list_entries": "browse",
    "read_file": "browse",
    "restore_block": "restore",
    "restore_tree": "restore",
}

__all__ = [
    "BackupReport",
    "BackupRequest",
    "BrowsedEntry",
    "ChangedBlocks",
    "DomainSettings",
    "FileReader",
    "FlockSessions",
    "MasterKey",
    "Pool",
    "ProcessSessions",
    "Reader",
    "Repository",
    "RestoreReport",
    "Root",
    "Session",
    "Sessions",
    "backup",
    "create_repository",
    "entry",
    "list_entries",
    "open_reader",
    "open_repository",
    "read_file",
    "restore_block",
    "restore_tree",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    return value
