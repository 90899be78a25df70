"""What handlers work with, made once by the wiring (server/) and handed to every call."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from starlette.requests import Request

from strongroom.api.catalogue_figures import CatalogueMetrics, MetricsAccess
from strongroom.api.event_hub import EventHub
from strongroom.base.browsing import EntryView
from strongroom.base.clock import Clock
from strongroom.control.access import Caller
from strongroom.control.audit import AuditTrail
from strongroom.control.db import Database
from strongroom.control.resource_binding import Look

# Who sends this request? Gets the raw request and its whole body (a signature covers it). Raises Unauthenticated.
Authenticate = Callable[[Request, bytes, str], Awaitable[Caller]]

# Returns when a part that the service needs answers. Raises StrongroomError with the sentence for operators.
Probe = Callable[[], Awaitable[None]]


# Whether the store itself keeps what a locked vault promises (object lock). Raises StoreError.
Retains = Callable[[], Awaitable[bool]]


# A one-time token for an agent of a project, (project, agent, type of resource): (token, when it ends, HOST:PORT to
# dial). Raises AgentNotFound, InvalidRequest, Conflict.
NewAgentToken = Callable[[str, str, str], Awaitable[tuple[str, datetime, str]]]


async def _keeps_nothing() -> bool:
    return False


def _any_target(kind: str, target: str) -> None:
    """For who sends nothing."""


class Inspector(Protocol):
    """Looks at what an operator registers or a tenant binds, on the host that can reach it."""

    async def inspect(self, resource_id: str, resource_type: str, path: bytes, options: dict[str, object]) -> Look:
        """Its size, and the reason why it cannot be protected (None: it can). Raises InvalidRequest for an address
        that no driver serves."""
        ...


class Browser(Protocol):
    """Reads inside restore points. Wired by server/, because `api` does not know `operations`."""

    async def entries(
        self, project_id: str, backup_id: str, path: bytes, after: bytes | None, limit: int
    ) -> Sequence[EntryView]:
        """Names of one folder of a restore point, sorted by bytes, after the given name. Raises EntryNotFound."""
        ...

    async def open_file(self, project_id: str, backup_id: str, path: bytes) -> tuple[EntryView, AsyncIterator[bytes]]:
        """One file (or the disk, path b""), verified chunk by chunk while it streams. Raises EntryNotFound."""
        ...


class Regions(Protocol):
    """Other regions: what is asked of them, and what they are given. Wired by server/, as Browser is."""

    def destinations(self, project_id: str) -> Sequence[tuple[str, str]]:
        """(region, project there) of every region that this project may copy to."""
        ...

    def project_here(self, region: str, project_there: str) -> str | None:
        """The project of here that takes replicas of the other region's; None: there is none."""
        ...

    def projects_here(self, region: str) -> Sequence[str]:
        """The projects of here that the region is told about at all."""
        ...

    async def require_destination(
        self, project_id: str, region: str, project_there: str, vault_id: str, object_type: str
    ) -> None:
        """Raises Conflict (6118-6120, 6129, 1011) when the vault over there cannot take replicas, InvalidRequest."""
        ...

    async def external_vaults(self, project_id: str, region: str, **wanted: str | int | None) -> object:
        """The answer of `list_external_vault` as the other region gives it. Raises Conflict 6118."""
        ...

    async def has_replica(self, region: str, record_id: str) -> bool:
        """False when it is gone over there. Raises Conflict 6118."""
        ...

    async def probe(self, project_id: str, region: str) -> Sequence[tuple[str, str]]:
        """(what was tried, why it does not work or ""). Raises InvalidRequest for a region that is not named."""
        ...

    async def echo(self, region: str) -> None:
        """Ask the region that asks. Raises RegionUnreachable, RegionRefused."""
        ...

    async def list_objects(
        self, region: str, record_id: str, prefix: str, after: str
    ) -> tuple[Sequence[tuple[str, int]], str]:
        """A page of (name, size) of what a record offers, and the last name when there are more."""
        ...

    async def read_object(
        self, region: str, record_id: str, name: str, offset: int, length: int
    ) -> tuple[int | None, bytes]:
        """(size when it is known, bytes) of an object that a record offers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may cost. Reasons: a body of the API is a few KB (256 resources with extra_info: 100 KB), and
    20 s bring the largest one over a line of half a megabit. bodies_max: bodies on their way, whoever sends them.
    of_project_max: what one project may have in work of concurrency_max, so that two never starve a third."""

    body_bytes_max: int = 1 << 20
    body_s_max: int = 20
    bodies_max: int = 500
    concurrency_max: int = 200
    of_project_max: int = 100


@dataclass(frozen=True, kw_only=True)
class Services:
    """Constructor arguments of the request side. region: the name of this one, which no replication may go to.

    endpoint   base URL as clients see it; None: taken from the Host header of each request
    regions, authenticate_region   None: there is no other region
    check_target   raises InvalidRequest for a (kind, target) of a notification that could never be sent
    seal_secret    a secret as it may stand in the database
    groups                         worker groups whose sources this process reaches; None: all
    ending                         set when the process is about to end
    new_agent_token                None: agents cannot dial this server
    """

    database: Database
    clock: Clock
    region: str
    authenticate: Authenticate
    browser: Browser
    inspector: Inspector
    probes: Mapping[str, Probe] = field(default_factory=dict)
    limits: Limits = Limits()
    endpoint: str | None = None
    regions: Regions | None = None
    authenticate_region: Authenticate | None = None
    retains: Retains = _keeps_nothing
    check_target: Callable[[str, str], None] = _any_target
    seal_secret: Callable[[str], bytes] = str.encode
    metrics: MetricsAccess = field(default_factory=MetricsAccess)
    catalogue_metrics: CatalogueMetrics = field(default_factory=CatalogueMetrics)
    new_agent_token: NewAgentToken | None = None
    audit: AuditTrail = field(default_factory=AuditTrail)
    events: EventHub = field(default_factory=EventHub)
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    groups: frozenset[str] | None = None

    def reaches_group(self, worker_group: str) -> bool:
        """Whether this process can look at resources of a worker group."""
        return self.groups is None or worker_group in self.groups

    def begin_end(self) -> None:
        """The process ends soon: not ready any more, and every answer closes its connection, so that balancers and
        clients go elsewhere while this one still answers."""
        self.ending.set()

    def end(self) -> None:
        """The listener goes now: event streams end, or the server would wait for what never ends by itself."""
        self.begin_end()
        self.events.close()
