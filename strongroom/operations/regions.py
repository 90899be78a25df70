"""What the request side may ask of other regions, and what it gives them. Wired by server/.

Everything here blocks on a network or a store, so it runs in threads. A region reads only what an open record offers:
the root that is copied, its labels, and index and packs of the domain it lies in.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

from strongroom.base.errors import (
    Conflict,
    InvalidRequest,
    ObjectMissing,
    PeerObjectNotFound,
    RecordNotFound,
    RegionRefused,
    RegionUnreachable,
    ShortRead,
    StrongroomError,
)
from strongroom.control.replication_sources import OfferedSource, find_offered
from strongroom.engine.catalogue import own_domain_id
from strongroom.engine.store.base import ObjectInfo, is_part
from strongroom.operations.job import Tools, vault_prefix
from strongroom.operations.peer_store import PIECE_BYTES_MAX
from strongroom.operations.peers import Peers

PAGE_OBJECTS = 5000  # of a listing: 0.4 MB of JSON
OFFERED_KEPT = 256  # domains of vaults, remembered between the requests of a copy
FOLDERS = ("index/", "packs/", "labels/", "roots/")
_CODE = re.compile(r"BackupService\.(\d{4})")


class RegionGate:
    """Implements api.services.Regions."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._peers: Peers = tools.peers
        self._domains: OrderedDict[str, str] = OrderedDict()  # vault -> its own domain's id in hex

    def destinations(self, project_id: str) -> Sequence[tuple[str, str]]:
        """(region, project there) of every region that this project may copy to."""
        return sorted(
            (name, region.projects[project_id])
            for name, region in self._peers.regions.items()
            if project_id in region.projects
        )

    def project_here(self, region: str, project_there: str) -> str | None:
        """The project of here that the other region's may have replicas in; None: it has none."""
        found = self._peers.regions[region].projects.items()
        return next((here for here, there in found if there == project_there), None)

    def projects_here(self, region: str) -> Sequence[str]:
        """The projects of here that the region is told about at all."""
        return list(self._peers.regions[region].projects)

    async def require_destination(
        self, project_id: str, region: str, project_there: str, vault_id: str, object_type: str
    ) -> None:
        """Raises Conflict: 6120 (no such region or vault), 1011 (not that project), 6118 (it does not answer), and what
        the region itself says against it."""
        if region == self._peers.own:
            raise InvalidRequest(reason=f"Invalid destination_region: name another region than {region}.")
        known = self._peers.regions.get(region)
        if known is None or project_id not in known.projects:
            raise Conflict(conflict_code="6120", reason=f"No vault {vault_id} is known in region {region[:64]}.")
        if not known.maps(here=project_id, there=project_there):
            raise Conflict(
                conflict_code="1011",
                reason=f"Project {project_there[:64]} of region {region} takes no replicas of this project. Its own "
                f"project there is {known.projects[project_id]}.",
            )
        body = {"source_project_id": project_id, "project_id": project_there, "vault_id": vault_id,
                "object_type": object_type}  # fmt: skip
        try:
            await asyncio.to_thread(self._peers.to(region).post, "/check", body)
        except (RegionUnreachable, RegionRefused) as err:
            raise _as_conflict(err) from err

    async def external_vaults(self, project_id: str, region: str, **wanted: str | int | None) -> object:
        """Vaults of the project's own over there that take replicas, decoded. Raises Conflict 6118."""
        there = self._peers.regions[region].projects[project_id]
        ask = partial(self._peers.to(region).get, "/vaults", source_project_id=project_id, project_id=there, **wanted)
        try:
            return await asyncio.to_thread(ask)
        except (RegionUnreachable, RegionRefused) as err:
            raise _as_conflict(err) from err

    async def has_replica(self, region: str, record_id: str) -> bool:
        """False when the region says that it is gone. Raises Conflict 6118."""
        try:
            await asyncio.to_thread(self._peers.to(region).get, f"/replicas/{record_id}")
        except RecordNotFound:
            return False
        except (RegionUnreachable, RegionRefused) as err:
            raise _as_conflict(err) from err
        return True

    async def probe(self, project_id: str, region: str) -> Sequence[tuple[str, str]]:
        """(what was tried, why it does not work or "") in order, for somebody who sets two regions up."""
        if region not in self._peers.regions:
            raise InvalidRequest(reason=f"No region {region[:64]} is named in this server's regions.toml.")
        there = self._peers.regions[region].projects.get(project_id)
        peer = self._peers.to(region)
        return [
            ("endpoint, certificate and secret", await _tried(partial(peer.get, ""))),
            ("project", "" if there else f"regions.toml maps project {project_id} to none of that region."),
            (
                "project over there",
                await _tried(partial(peer.post, "/project", {"source_project_id": project_id, "project_id": there}))
                if there
                else "not tried",
            ),
            ("the way back", await _tried(partial(peer.post, "/echo", {}))),
        ]

    async def echo(self, region: str) -> None:
        """Ask the region that asks us. Raises RegionUnreachable, RegionRefused."""
        await asyncio.to_thread(self._peers.to(region).get, "")

    async def list_objects(
        self, region: str, record_id: str, prefix: str, after: str
    ) -> tuple[Sequence[tuple[str, int]], str]:
        """A page of (name, size), and the last name when there are more. Raises RecordNotFound, InvalidRequest."""
        if prefix not in FOLDERS:
            raise InvalidRequest(reason=f"Invalid prefix: give one of {', '.join(FOLDERS)}.")
        source = await self._offered(region, record_id)

        def look() -> tuple[Sequence[tuple[str, int]], str]:
            place = self._place(source)
            page = [(info.name[len(place) :], info.size) for info in islice(
                self._behind(source, f"{place}{prefix}", f"{place}{after}"), PAGE_OBJECTS + 1)]  # fmt: skip
            return page[:PAGE_OBJECTS], page[PAGE_OBJECTS - 1][0] if len(page) > PAGE_OBJECTS else ""

        return await asyncio.to_thread(look)

    async def read_object(
        self, region: str, record_id: str, name: str, offset: int, length: int
    ) -> tuple[int | None, bytes]:
        """(size when it is known, bytes; fewer than `length` when the object ends). Raises PeerObjectNotFound too."""
        if not 0 <= length <= PIECE_BYTES_MAX or offset < 0:
            raise InvalidRequest(reason=f"Invalid length: give 0 to {PIECE_BYTES_MAX}, and read on from there.")
        source = await self._offered(region, record_id)
        if not _is_offered(source, name):
            raise PeerObjectNotFound(id=name[:100])

        def look() -> tuple[int | None, bytes]:
            store, full = self._tools.store, self._place(source) + name
            try:
                if offset and length:
                    try:
                        return None, store.read(full, offset, length)
                    except ShortRead:
                        pass  # it ends sooner: how long it is decides
                size = store.size(full)
                return size, store.read(full, offset, min(length, size - offset)) if offset < size and length else b""
            except ObjectMissing as err:
                raise PeerObjectNotFound(id=name) from err

        return await asyncio.to_thread(look)

    async def _offered(self, region: str, record_id: str) -> OfferedSource:
        source = await find_offered(
            self._tools.database,
            own_region=self._peers.own,
            region=region,
            record_id=record_id,
            project_ids=self.projects_here(region),
        )
        if source is None:
            raise RecordNotFound(id=record_id)
        return source

    def _place(self, source: OfferedSource) -> str:
        """Where the offered domain lies, with a slash at the end."""
        prefix = vault_prefix(source.project_id, source.vault_id) + "/"
        domain = source.domain_id or self._domains.get(source.vault_id)
        if domain is None:
            domain = own_domain_id(self._tools.store, prefix)
            self._domains[source.vault_id] = domain
            if len(self._domains) > OFFERED_KEPT:
                self._domains.popitem(last=False)
        return f"{prefix}domains/{domain}/"

    def _behind(self, source: OfferedSource, prefix: str, after: str) -> Iterator[ObjectInfo]:
        place = self._place(source)
        for info in self._tools.store.list(prefix):
            if info.name > after and _is_offered(source, info.name[len(place) :]):
                yield info


def _is_offered(source: OfferedSource, name: str) -> bool:
    folder, _, rest = name.partition("/")
    match folder:
        case "roots":
            return rest in source.roots
        case "labels":
            return rest.rpartition(".")[0] in {root.rpartition(".")[0] for root in source.roots}
        case "index" | "packs":
            return is_part(rest)
        case _:
            return False


def _as_conflict(err: RegionUnreachable | RegionRefused) -> Conflict:
    """The region's own code where it is one of the service's; else the check as such failed."""
    found = _CODE.fullmatch(err.published_code)
    code = found[1] if found else "6118"
    if code == "9900":
        code = "6118"
    return Conflict(conflict_code=code, reason=err.message, detail=err.detail)


async def _tried(call: "partial[object]") -> str:
    try:
        await asyncio.to_thread(call)
    except StrongroomError as err:
        return err.message
    return ""
