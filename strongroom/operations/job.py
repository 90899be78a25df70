"""What every job works with, and how a vault's repository is opened for it."""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

import structlog

from strongroom.base import ssh_address
from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import InvalidRequest, ObjectExists, ObjectMissing, StoreError
from strongroom.control import sessions as session_rows
from strongroom.control.db import Database
from strongroom.control.subjects import ResourceRef, VaultRef
from strongroom.control.tasks import Task, note_progress
from strongroom.control.vault_keys import find_vault_keys, save_vault_keys
from strongroom.control.vault_kinds import HOST_TYPES
from strongroom.engine import DomainSettings, MasterKey, create_repository, open_repository
from strongroom.engine.catalogue import DomainPlace, find_domains, is_own_domain
from strongroom.engine.copy import receive_domain
from strongroom.engine.model import SessionKind, Sessions
from strongroom.engine.open import load_wraps
from strongroom.engine.pool import Pool
from strongroom.engine.repository import Repository
from strongroom.engine.store.base import Store
from strongroom.operations.agents import Stations
from strongroom.operations.monitor import JobMonitor
from strongroom.operations.peers import Peers
from strongroom.operations.portal import Portal
from strongroom.operations.watched_store import Spend, WatchedStore, free
from strongroom.sources.base import Driver, ResourceType, SourceOptions, SourceRef
from strongroom.sources.hosts.driver import HostDriver
from strongroom.sources.hosts.link import Station
from strongroom.sources.hosts.ssh import SshStation
from strongroom.sources.open import driver_for

log = structlog.get_logger("job")

OWN_PLACE = "The path holds, or lies in, the service's own state. Choose another one."


def vault_prefix(project_id: str, vault_id: str) -> str:
    """Where a vault lives in the store: the tenant is part of every name."""
    return f"vaults/{project_id}/{vault_id}"


@dataclass(frozen=True, kw_only=True)
class Tools:
    """One a process: what jobs share. `pool` holds compressors and buffers under one byte budget (RULINGS 3).

    stations       hosts with an agent
    index_folder   where copies of the vaults' indexes are kept, a folder a vault; they may be lost at any time
    ssh_folder     key and known_hosts for hosts that are reached by ssh
    peers          the other regions
    place          the state folder of this process, by its id (state.place_of)
    own_places     folders of the service on this machine (real paths): never read as a source, never written over
    """

    database: Database
    portal: Portal
    store: Store
    master: MasterKey
    pool: Pool
    clock: Clock
    settings: DomainSettings
    index_folder: str
    ssh_folder: Path = Path("ssh")
    place: str | None = None
    own_places: tuple[bytes, ...] = ()
    stations: Stations = field(default_factory=Stations)
    peers: Peers = field(default_factory=lambda: Peers({}, "", SystemClock()))

    def domains(self, vault: VaultRef) -> list[str | None]:
        """Every domain that the store has of the vault, as `repository` takes them: its own first. One LIST."""
        prefix = vault_prefix(vault.project_id, vault.id) + "/"
        store = WatchedStore(self.store)
        places = [place for place in find_domains(store, prefix) if place.prefix == prefix]
        own = [place for place in places if is_own_domain(store, place)]
        # A first backup that was killed leaves keys of a domain that nothing refers to (create_repository's order).
        others = [place for place in places if place not in own and set(place.objects) - {"keys", "digests"}]
        return [*(None for _ in own), *(place.id.hex() for place in others)]

    def repository(
        self,
        vault: VaultRef,
        task_id: str | None,
        spend: Spend = free,
        *,
        domain_id: str | None = None,
        cached: bool = True,
    ) -> Repository:
        """The vault's own domain, made at its first use, or one that came from another vault (id in hex; it is there).

        Sessions of a task stay open until it is final (RULINGS 9). cached: its index may come from this machine's copy.

        Raises StoreError when the vault had keys and the store does not hold them: a new domain must never hide that.
        """
        prefix = vault_prefix(vault.project_id, vault.id)
        store = WatchedStore(self.store, spend)
        sessions = RowSessions(self, vault, task_id, domain_id)
        cache = self.index_cache(vault) if cached else None
        if domain_id is not None:
            return self._open(store, prefix, sessions, cache, bytes.fromhex(domain_id))
        known = self.portal.call(find_vault_keys(self.database, vault.project_id, vault.id))
        try:
            repository = self._open(store, prefix, sessions, cache)
        except ObjectMissing as err:
            if known is not None:
                raise StoreError(
                    name=f"{prefix}/domain", detail="keys known, not in the store: is it mounted?"
                ) from err
            # Two first backups race for the name of the domain; who comes second opens what the first one made.
            with suppress(ObjectExists):
                create_repository(store, prefix, self.master, self.settings)
            repository = self._open(store, prefix, sessions, cache)
        if known is None:
            _, wrapped = load_wraps(store, repository.prefix)[0]
            self.portal.call(save_vault_keys(self.database, vault.project_id, vault.id, wrapped))
        return repository

    def receive(self, vault: VaultRef, task_id: str, source: Repository) -> tuple[Repository, str | None]:
        """The domain of `source` in this vault, made when it is not there, and how `repository` names it there."""
        prefix = vault_prefix(vault.project_id, vault.id) + "/"
        store = WatchedStore(self.store)
        place = DomainPlace(prefix=prefix, id=source.domain.id, objects={}, bytes=0)
        domain_id = None if is_own_domain(store, place) else source.domain.id.hex()
        sessions = RowSessions(self, vault, task_id, domain_id)
        return receive_domain(store, prefix, self.master, source, sessions, self.index_cache(vault)), domain_id

    def _open(
        self, store: Store, prefix: str, sessions: Sessions, cache: str | None, domain_id: bytes | None = None
    ) -> Repository:
        return open_repository(
            store,
            prefix,
            self.master,
            domain_id=domain_id,
            pool=self.pool,
            sessions=sessions,
            clock=self.clock,
            cache=cache,
        )

    def forget_index(self, vault: VaultRef) -> None:
        """Remove what is kept of a vault beside the store. Idempotent."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.index_cache(vault))

    def index_cache(self, vault: VaultRef) -> str:
        """Where copies of its indexes are kept."""
        return f"{self.index_folder}/{vault.id}"


# A zombie of an earlier attempt may still write or read: its pin stays until the task is final, not until its worker is
# gone (RULINGS 9). What a prune or a check pins protects nothing that somebody else could still commit.
UNTIL_FINAL = frozenset({"backup", "restore", "copy"})


class RowSessions:
    """engine.Sessions with rows: seen by every process (RULINGS 9). domain_id: None for the vault's own domain."""

    def __init__(self, tools: Tools, vault: VaultRef, task_id: str | None, domain_id: str | None = None) -> None:
        self._tools, self._vault, self._task_id, self._domain_id = tools, vault, task_id, domain_id
        self._held: set[str] = set()

    def open(self, kind: SessionKind, index_number: int) -> str:
        token = self._tools.portal.call(
            session_rows.open_session(
                self._tools.database,
                vault_id=self._vault.id,
                project_id=self._vault.project_id,
                task_id=self._task_id,
                kind=kind,
                index_number=index_number,
                domain_id=self._domain_id,
                place=self._tools.place,
            )
        )
        if self._task_id is not None and kind in UNTIL_FINAL:
            self._held.add(token)
        return token

    def close(self, token: str) -> None:
        if token in self._held:
            return  # ends with the task, in the transaction that makes it final
        self._tools.portal.call(
            session_rows.close_session(self._tools.database, project_id=self._vault.project_id, session_id=token)
        )

    def oldest_pinned(self) -> int | None:
        return self._tools.portal.call(
            session_rows.oldest_pinned(self._tools.database, self._vault.project_id, self._vault.id, self._domain_id)
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt of one task."""

    task: Task
    tools: Tools
    monitor: JobMonitor

    def fence(self) -> None:
        """Last look before something is committed outside the database. Raises Fenced, Canceled or WorkerStops.

        The last numbers of the work are noted: those of the end are exact.
        """
        self.monitor.check()
        progress = self.monitor.progress(self.tools.clock.monotonic_s())
        self.tools.portal.call(note_progress(self.tools.database, self.task, progress))


def overlaps(path: bytes, places: Iterable[bytes]) -> bool:
    """Whether a path lies in one of these folders or around one, links followed. An address lies nowhere."""
    if not path.startswith(b"/"):
        return False
    one = os.path.realpath(path).rstrip(b"/") + b"/"
    return any(one.startswith(place) or place.startswith(one) for place in (p.rstrip(b"/") + b"/" for p in places))


def require_foreign(tools: Tools, path: bytes) -> None:
    """Raises InvalidRequest where a worker would read or write the state that it runs on."""
    if overlaps(path, tools.own_places):
        raise InvalidRequest(reason=OWN_PLACE)


def source_ref(resource: ResourceRef) -> SourceRef:
    """A registered resource as drivers know it. Raises InvalidRequest for a type that no driver here serves."""
    if resource.type not in get_args(ResourceType):
        raise InvalidRequest(reason=f"Resources of type {resource.type} cannot be read by this worker.")
    options = resource.options
    return SourceRef(
        resource_id=resource.id,
        type=cast("ResourceType", resource.type),
        path=resource.path,
        options=SourceOptions(
            exclude=tuple(options.get("exclude", ())),
            one_file_system=bool(options.get("one_file_system", False)),
            read_limit_bytes_s=options.get("read_limit_bytes_s"),
            privileged=bool(options.get("privileged", False)),
        ),
        roots=resource.roots,
    )


def station_of(tools: Tools, resource: ResourceRef) -> Station:
    """Where the agent of a host is met: it has dialled, or is sent there by ssh. Raises InvalidRequest."""
    if not resource.path.startswith(ssh_address.SCHEME):
        return tools.stations.at(resource.id, resource.name)
    return SshStation(ssh_address.parse_ssh_address(resource.path), tools.ssh_folder, resource.name)


def driver_of(job: Job, resource: ResourceRef) -> Driver:
    """Who reads and writes it: a driver here, or the agent on its host. Raises InvalidRequest for an unknown type, and
    for places of our own."""
    if resource.type in HOST_TYPES:
        return HostDriver(station_of(job.tools, resource), job.monitor.check)
    require_foreign(job.tools, resource.path)
    return driver_for(resource.type, resource.path)
