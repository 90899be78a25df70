"""A locked vault in the store: what programs without a database must know of it (engine/locks.py).

    backup     before anything is written: the lock, and the time; the root carries its own promise in its labels; when
               it is durable and before it is reported, the store keeps what it needs, older packs included
    deletion   the time as it is now, or the store would keep what the service lets go
    replica    the same, before it is reported
    prune      promises that came after the root: its labels are put again with the time; at the end the store keeps
               what promised roots need, for prune has moved it
    vault gone roots whose time is over go one by one, then the keys; what is still promised stops it

What a locked vault keeps without a time is kept by the store for a month at a time (promises.ENDLESS_S); a prune that
comes once a week to locked vaults sees to it (control/locking.py).

Each can be done twice, and in any order with the others: the lock is put once, the time only goes forward, of labels
the newest count.
"""

from datetime import datetime
from typing import Protocol

import structlog

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Corrupt, ObjectMissing
from strongroom.control import promises
from strongroom.control.subjects import VaultRef
from strongroom.engine import Repository, open_repository
from strongroom.engine.catalogue import find_domains
from strongroom.engine.locks import is_locked, lock, tell_time
from strongroom.engine.retain import retain_roots
from strongroom.engine.store.retention import retains
from strongroom.operations.job import Job, Tools, vault_prefix
from strongroom.operations.watched_store import WatchedStore

log = structlog.get_logger("locking")


class PointTime(Protocol):
    """What a job knows of the time of the restore point that it makes. promised_until: by the clock of promises."""

    @property
    def expired_at(self) -> datetime | None: ...
    @property
    def promised_until(self) -> datetime | None: ...
    @property
    def auto_trigger(self) -> bool: ...


def tell_lock(tools: Tools, vault: VaultRef) -> None:
    """Say in the store that the vault is locked, and how far the clock of promises has come."""
    if not vault.locked:
        return
    store, prefix = WatchedStore(tools.store), f"{vault_prefix(vault.project_id, vault.id)}/"
    lock(store, prefix)
    tell_time(store, prefix, tools.portal.call(promises.show_promise_time(tools.database)))


def tell_promises(tools: Tools, vault: VaultRef, repository: Repository, domain_id: str | None) -> None:
    """Write into the labels what was promised to roots of the domain after they were made."""
    untold = tools.portal.call(promises.untold_promises(tools.database, vault.project_id, vault.id, domain_id))
    for root_name, until in untold:
        try:
            root = repository.load_root(root_name)
            repository.change_labels(root, {"lock_until": api_timestamp(until)})
        except (Corrupt, ObjectMissing):
            continue  # damage is told by a check; there is nothing to promise
        tools.portal.call(promises.note_told(tools.database, vault.project_id, root_name, until))


def retain_promised(job: Job, vault: VaultRef, repository: Repository, domain_id: str | None) -> None:
    """Have the store itself keep what the promised roots of the domain need, where it can do that."""
    tools = job.tools
    if not vault.locked or not retains(repository.store):
        return
    left = tools.portal.call(promises.time_left(tools.database, vault.project_id, vault.id, domain_id))
    there = set(repository.root_names())
    seconds = {root: seconds for root, seconds in left if root in there}
    kept = retain_roots(repository, seconds, job.monitor, ask_all=True)
    log.info("kept by the store", vault=vault.id, domain=domain_id, roots=len(seconds), objects=kept)


def retain_root(job: Job, vault: VaultRef, repository: Repository, root: str, point: PointTime) -> None:
    """The same for a root that is not in its row yet: it is promised from the moment it is reported."""
    if not retains(repository.store):
        return
    if point.promised_until is not None and vault.locked:
        now = job.tools.portal.call(promises.show_promise_time(job.tools.database))
        seconds = (point.promised_until - now).total_seconds()
    elif point.expired_at is None and vault.keeps(auto_trigger=point.auto_trigger):
        seconds = promises.ENDLESS_S
    else:
        return
    retain_roots(repository, {root: seconds}, job.monitor)


def release_roots(tools: Tools, vault: VaultRef) -> None:
    """Of a locked vault that is deleted: remove every root, each only if its time is over. Raises Conflict 6220."""
    store, prefix = WatchedStore(tools.store), f"{vault_prefix(vault.project_id, vault.id)}/"
    if not is_locked(store, prefix):
        return
    tell_lock(tools, vault)
    for place in find_domains(store, prefix):
        if place.prefix != prefix or "roots" not in place.objects or "keys" not in place.objects:
            continue
        repository = open_repository(store, prefix, tools.master, domain_id=place.id, pool=tools.pool)
        for name in repository.root_names():
            repository.delete_root(name)
