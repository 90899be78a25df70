"""Kinds of vaults and of resources: which fits which, and the codes clients know them by. Pure tables."""

from dataclasses import dataclass

from strongroom.base.errors import (
    Conflict,
    DiskNotFound,
    NotFound,
    ResourceNotFound,
    ServerNotFound,
)


@dataclass(frozen=True, kw_only=True)
class ResourceKind:
    """One `OS::...` type and the published codes of its refusals."""

    type_name: str
    not_found: type[NotFound]
    bound_code: str  # it is in a vault already
    unfit_code: str  # it is there, but cannot be protected as it is


SERVER = ResourceKind(type_name="OS::Nova::Server", not_found=ServerNotFound, bound_code="7116", unfit_code="7101")
BARE_METAL = ResourceKind(
    type_name="OS::Ironic::BareMetalServer", not_found=ServerNotFound, bound_code="7116", unfit_code="7101"
)
DISK = ResourceKind(type_name="OS::Cinder::Volume", not_found=DiskNotFound, bound_code="7006", unfit_code="7003")
TURBO = ResourceKind(type_name="OS::Sfs::Turbo", not_found=ResourceNotFound, bound_code="6103", unfit_code="6215")
NATIVE = ResourceKind(type_name="OS::Native::Server", not_found=ResourceNotFound, bound_code="6103", unfit_code="6215")
DESKTOP = ResourceKind(
    type_name="OS::Workspace::DesktopV2", not_found=ResourceNotFound, bound_code="6103", unfit_code="6215"
)
RESOURCE_KINDS = {kind.type_name: kind for kind in (SERVER, BARE_METAL, DISK, TURBO, NATIVE, DESKTOP)}

HOST_TYPES = frozenset({NATIVE.type_name, BARE_METAL.type_name})  # protected by an agent, by their paths

# Lists of volumes to leave out or to take alone only mean something for a machine with several.
WITH_VOLUMES = frozenset({SERVER.type_name, BARE_METAL.type_name})


@dataclass(frozen=True, kw_only=True)
class VaultKind:
    """What one object_type stands for.

    provider_id       fixed UUID of the contract; rds and file have none published, theirs are ours
    resource_types    of a public vault; a hybrid one of this kind also takes hybrid_types
    spec_noun         middle of `vault.backup.<noun>.normal`
    hybrid_only       the kind exists with cloud_type hybrid only
    replicable        a replication vault of this kind is possible
    """

    object_type: str
    provider_id: str
    resource_types: frozenset[str]
    spec_noun: str
    hybrid_types: frozenset[str] = frozenset()
    hybrid_only: bool = False
    replicable: bool = False


VAULT_KINDS = {
    kind.object_type: kind
    for kind in (
        VaultKind(
            object_type="server",
            provider_id="0daac4c5-6707-4851-97ba-169e36266b66",
            resource_types=frozenset({SERVER.type_name, BARE_METAL.type_name}),
            hybrid_types=frozenset({NATIVE.type_name}),
            spec_noun="server",
            replicable=True,
        ),
        VaultKind(
            object_type="disk",
            provider_id="d1603440-187d-4516-af25-121250c7cc97",
            resource_types=frozenset({DISK.type_name}),
            spec_noun="volume",
        ),
        VaultKind(
            object_type="turbo",
            provider_id="3f3c3220-245c-4805-b811-758870015881",
            resource_types=frozenset({TURBO.type_name}),
            spec_noun="turbo",
            replicable=True,
        ),
        VaultKind(
            object_type="workspace",
            provider_id="86a80900-71bf-4961-956a-d52df944f84a",
            resource_types=frozenset({DESKTOP.type_name}),
            spec_noun="server",  # the published list of spec codes has none for desktops, which are servers
        ),
        VaultKind(
            object_type="vmware",
            provider_id="a13639de-00be-4e94-af30-26912d75e4a2",
            resource_types=frozenset(),
            spec_noun="server",
            hybrid_only=True,
        ),
        VaultKind(
            object_type="rds",
            provider_id="5d1f6f0e-7c0b-4f64-9a51-6e0d3d1f2b8c",
            resource_types=frozenset(),
            spec_noun="rds",
        ),
        VaultKind(
            object_type="file",
            provider_id="b7a1c0de-3f52-4c1e-8d34-2a90f6e4d7c1",
            resource_types=frozenset({NATIVE.type_name}),
            spec_noun="server",
            hybrid_only=True,
        ),
    )
}


def spec_code(kind: VaultKind, protect_type: str, cloud_type: str) -> str:
    """`billing.spec_code`, derived from what the vault protects and how."""
    if protect_type == "replication":
        return "vault.replication.server.normal"
    if protect_type == "hybrid" or cloud_type == "hybrid":
        return "vault.hybrid.server.normal"
    return f"vault.backup.{kind.spec_noun}.normal"


def require_fit(vault: VaultKind, cloud_type: str, resource_type: str) -> ResourceKind:
    """The resource's kind. Raises Conflict: 6116 unknown type, 6108 and 6102 no room for such a one."""
    kind = RESOURCE_KINDS.get(resource_type)
    if kind is None:
        raise Conflict(
            reason=f"The resource type is not known. Use one of {', '.join(RESOURCE_KINDS)}.", conflict_code="6116"
        )
    fitting = vault.resource_types | (vault.hybrid_types if cloud_type == "hybrid" else frozenset())
    if not fitting:
        raise Conflict(reason=f"A {vault.object_type} vault takes no resources.", conflict_code="6108")
    if resource_type not in fitting:
        raise Conflict(
            reason=f"A {vault.object_type} vault takes resources of type {', '.join(sorted(fitting))} only. "
            "Choose another vault.",
            conflict_code="6102",
        )
    return kind
