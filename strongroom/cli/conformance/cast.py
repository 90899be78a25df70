"""Who plays which part: credentials and names from the command line, turned into what the kit works with."""

from dataclasses import dataclass

from strongroom.base.ids import is_id
from strongroom.cli.client import Client
from strongroom.cli.credentials import Credentials
from strongroom.cli.errors import CommandRefused
from strongroom.conformance.target import REPLICABLE, Party, Resource, Target

KINDS = ("disk", "turbo", "server")  # in this order a resource is looked for


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Owner, partner in another project, owner in another region; resources by id or name, the first for most of it."""

    owner: Credentials
    partner: Credentials | None
    replica: Credentials | None
    resources: list[str]


def find_target(client: Client, cast: Cast) -> Target:
    """Look the resources up as the owner. Raises CommandRefused with a sentence."""
    if not cast.resources:
        raise CommandRefused(
            reason="Name the resource that may be backed up and restored over: --resource. Or try --own-server."
        )
    found = [_resource(client, name) for name in cast.resources]
    return Target(
        owner=_party(cast.owner),
        partner=_party(cast.partner) if cast.partner is not None else None,
        replica=_party(cast.replica) if cast.replica is not None else None,
        resource=found[0],
        copied=next((one for one in found if one.object_type in REPLICABLE), None),
    )


def _resource(client: Client, name: str) -> Resource:
    for kind in KINDS:
        path = client.v3(f"protectables/{kind}/instances")
        found = client.get(path, **{"id" if is_id(name) else "name": name})["instances"]
        if found:
            return Resource(id=found[0]["id"], name=found[0]["name"], type=found[0]["type"], object_type=kind)
    raise CommandRefused(reason=f"Nothing that can be protected is called {name} ({', '.join(KINDS)}).")


def _party(credentials: Credentials) -> Party:
    return Party(
        endpoint=credentials.endpoint,
        project_id=credentials.project_id,
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        username=credentials.username,
        password=credentials.password,
        domain_name=credentials.domain_name,
        project_name=credentials.project_name,
        region=credentials.region,
    )
