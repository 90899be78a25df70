"""The data plane: chunks, segments, packs, an index and roots in a store. It knows no tenant, no HTTP and no SQL.

The verbs, and the order in which a caller meets them (a POSIX store comes from `engine.store.open`):

    master = MasterKey.create(path) | MasterKey.load(path)
    repository = create_repository(store, prefix, master, DomainSettings())
               | open_repository(store, prefix, master, pool=None, sessions=None)
    report     = backup(repository, stream, BackupRequest(...), monitor, fence)
    root       = repository.find_root(backup_id, generation=None)        # adopt what an earlier attempt left, or None
    report     = restore_tree(repository, root_name, tree_target, path=(), monitor=...)
               | restore_block(repository, root_name, block_target, monitor)
    entries    = list_entries(repository, root_name, path, after, limit)
    pieces     = read_file(repository, root_name, path)
    repository.load_root(name), .root_names(), .delete_root(name), .put_labels(backup_id, labels)
    live       = mark(repository, root_names)                            # what prune keeps, and live sealed bytes
"""

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

__all__ = [
    "BackupReport",
    "BackupRequest",
    "BrowsedEntry",
    "ChangedBlocks",
    "DomainSettings",
    "RestoreReport",
    "Root",
    "Sessions",
]
