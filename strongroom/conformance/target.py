"""Where the kit goes, and as whom."""

from dataclasses import dataclass, field

# By object_type; a vault's spec_code has the object_type itself where nothing else is said.
RESTORE_MEMBER = {"turbo": "resource_id", "disk": "volume_id", "server": "server_id"}
SPEC_NOUN = {"disk": "volume"}
REPLICABLE = ("turbo", "server")  # the published API has no replicas of disks


@dataclass(frozen=True, kw_only=True)
class Party:
    """One tenant on the endpoint.

    Without username and password there is no token, and the clients that need one do not run.
    """

    endpoint: str
    project_id: str
    access_key: str
    secret_key: str = field(repr=False)
    username: str = ""
    password: str = field(default="", repr=False)
    domain_name: str = ""
    project_name: str = ""
    region: str = ""

    @property
    def has_password(self) -> bool:
        """Whether a token can be asked for."""
        return bool(self.username and self.password and self.domain_name and self.project_name)


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What may be protected, as list_protectable shows it. `object_type`: the kind of vault it goes into."""

    id: str
    name: str
    type: str
    object_type: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """Who and what the stories are about.

    partner   a tenant of another project, for sharing
    replica   the owner in another region, where copies go; its endpoint is that region's
    resource  is backed up, and restored over       copied  is backed up, and copied to the other region
    """

    owner: Party
    partner: Party | None
    replica: Party | None
    resource: Resource
    copied: Resource | None

    def variables(self) -> dict[str, str]:
        """What the stories call all this."""
        found = {
            "project_id": self.owner.project_id,
            "domain_name": self.owner.domain_name,
            "region": self.owner.region,
            "resource_id": self.resource.id,
            "resource_name": self.resource.name,
            "resource_type": self.resource.type,
            "object_type": self.resource.object_type,
            "restore_member": RESTORE_MEMBER.get(self.resource.object_type, "resource_id"),
            "spec_code": f"vault.backup.{SPEC_NOUN.get(self.resource.object_type, self.resource.object_type)}.normal",
        }
        if self.partner is not None:
            found["partner_project"] = self.partner.project_id
        if self.replica is not None and self.copied is not None:
            found |= {"replica_project": self.replica.project_id, "replica_region": self.replica.region}
            found |= {"copied_id": self.copied.id, "copied_type": self.copied.type}
            found |= {"copied_object_type": self.copied.object_type}
        return {name: value for name, value in found.items() if value}
