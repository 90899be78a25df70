"""`vault`: where restore points are kept, and which resources are bound to it."""

import enum
from typing import Annotated, Any

import typer

from strongroom.cli import names
from strongroom.cli.command import Session, YesOption, group, remote

app = group("Vaults: each keeps the restore points of its resources under a key of its own.")

VaultArgument = Annotated[str, typer.Argument(metavar="VAULT", help="Id or name.")]
ResourcesArgument = Annotated[list[str], typer.Argument(metavar="RESOURCE...", help="Ids or names.")]

MEMBERS = {
    "Id": "id",
    "Name": "name",
    "Description": "description",
    "Holds": "billing.object_type",
    "Size GB": "billing.size",
    "Used MB": "billing.used",
    "Status": "billing.status",
    "Created": "created_at",
}
RESOURCE_COLUMNS = {
    "Id": "id",
    "Name": "name",
    "Type": "type",
    "Size GB": "size",
    "Backups": "backup_count",
    "Stored MB": "backup_size",
    "Status": "protect_status",
}


class Kind(enum.StrEnum):
    """What a vault holds."""

    turbo = enum.auto()
    disk = enum.auto()
    server = enum.auto()
    file = enum.auto()


@remote(app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="1-64 letters, digits, _ or -.")],
    kind: Annotated[
        Kind,
        typer.Option("--type", help="turbo: folders; disk: images and devices; server: machines; file: hosts (agent)."),
    ],
    size: Annotated[int, typer.Option(metavar="GB", help="How much it may keep, 10-10485760 GB.")] = 100,
    resource: Annotated[
        list[str] | None, typer.Option(metavar="RESOURCE", help="Bind it at once, id or name; repeatable.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="At most 64 characters.")] = None,
    auto_expand: Annotated[bool, typer.Option("--auto-expand", help="Grow by a quarter when it is full.")] = False,
    app_consistent: Annotated[
        bool, typer.Option("--app-consistent", help="Of servers: ask the guest to hold still, so that files are whole.")
    ] = False,
    replicas: Annotated[
        bool, typer.Option("--replicas", help="Keep replicas of another region's restore points, not backups.")
    ] = False,
) -> None:
    """Make a vault."""
    body: dict[str, Any] = {
        "name": name,
        "resources": names.resources(session.client, resource or [], ["native" if kind == Kind.file else kind.value]),
        "auto_expand": auto_expand,
        "billing": {
            "object_type": kind.value,
            "cloud_type": "hybrid" if kind == Kind.file else "public",
            "protect_type": "replication" if replicas else "backup",
            "consistent_level": "app_consistent" if app_consistent else "crash_consistent",
            "size": size,
        },
    }
    if description is not None:
        body["description"] = description
    made = session.client.post(session.client.v3("vaults"), {"vault": body})["vault"]
    session.output.details(made, MEMBERS)


@remote(app, "list")
def list_vaults(session: Session) -> None:
    """Show your vaults."""
    rows = session.client.pages(session.client.v3("vaults"), "vaults")
    session.output.table(rows, {label: MEMBERS[label] for label in MEMBERS if label != "Description"})


@remote(app, "show")
def show(session: Session, vault: VaultArgument) -> None:
    """Show one vault and its resources."""
    found = load_vault(session, vault)
    session.output.details(found, MEMBERS)
    if not session.output.as_json and found["resources"]:
        session.output.say("")
        session.output.table(found["resources"], RESOURCE_COLUMNS)


@remote(app, "update")
def update(
    session: Session,
    vault: VaultArgument,
    name: Annotated[str | None, typer.Option(help="New name.")] = None,
    size: Annotated[int | None, typer.Option(metavar="GB", help="New size; not below what is used.")] = None,
    auto_expand: Annotated[bool | None, typer.Option(help="Grow by a quarter when it is full.")] = None,
    threshold: Annotated[int | None, typer.Option(metavar="PERCENT", help="Warn when so much is used, 1-100.")] = None,
) -> None:
    """Change a vault."""
    wanted = {"name": name, "auto_expand": auto_expand, "threshold": threshold}
    body: dict[str, Any] = {member: value for member, value in wanted.items() if value is not None}
    if size is not None:
        body["billing"] = {"size": size}
    if not body:
        raise typer.BadParameter("Say what to change: --name, --size, --auto-expand or --threshold.")
    path = session.client.v3(f"vaults/{names.vault_id(session.client, vault)}")
    session.output.details(session.client.put(path, {"vault": body})["vault"], MEMBERS)


@remote(app, "lock")
def lock(
    session: Session,
    vault: VaultArgument,
    manual: Annotated[bool, typer.Option("--manual", help="Keep manual backups too.")] = False,
    yes: YesOption = False,
) -> None:
    """Lock a vault: its automatic backups stay until they expire. It never opens again."""
    found = load_vault(session, vault)
    session.confirm(f"Lock the vault {found['name']} for ever?", yes=yes)
    path = session.client.ext(f"vaults/{found['id']}/lock")
    keep = manual or session.client.get(path)["lock"]["keep_manual"]
    answer = session.client.put(path, {"lock": {"locked": True, "keep_manual": keep}})
    members = {"Locked": "locked", "Keeps manual backups": "keep_manual", "Kept by the store itself": "kept_by_store"}
    session.output.details(answer["lock"], members)
    if not answer["lock"]["kept_by_store"]:
        session.output.warn(
            "The store keeps this against our own programs only: it is a folder, or a bucket without object lock."
        )


@remote(app, "suspend")
def suspend(session: Session, vault: VaultArgument, resources: ResourcesArgument) -> None:
    """Let schedules pass over resources of a vault; what they have stays."""
    _set_resources(session, vault, resources, "suspend")


@remote(app, "resume")
def resume(session: Session, vault: VaultArgument, resources: ResourcesArgument) -> None:
    """Let schedules back up suspended resources again."""
    _set_resources(session, vault, resources, "unsuspend")


@remote(app, "tag")
def tag(
    session: Session,
    vault: VaultArgument,
    tags: Annotated[list[str], typer.Argument(metavar="KEY[=VALUE]...", help="Tags; with --delete only their keys.")],
    delete: Annotated[bool, typer.Option("--delete", help="Take the tags away.")] = False,
) -> None:
    """Give a vault tags, or take them away."""
    parts = [{"key": key, "value": value} for key, _, value in (text.partition("=") for text in tags)]
    chosen = names.vault_id(session.client, vault)
    body = {"action": "delete" if delete else "create", "tags": parts}
    session.client.post(session.client.v3(f"vault/{chosen}/tags/action"), body)
    found = session.client.get(session.client.v3(f"vault/{chosen}/tags"))["tags"]
    session.output.table(found, {"Key": "key", "Value": "value"})


@remote(app, "delete")
def delete(session: Session, vault: VaultArgument, yes: YesOption = False) -> None:
    """Delete a vault and all restore points in it. It ends in the background; `task list` shows it."""
    chosen = names.vault_id(session.client, vault)
    session.confirm(f"Delete the vault {vault} and ALL restore points in it?", yes=yes)
    session.client.delete(session.client.v3(f"vaults/{chosen}"))
    session.output.note("Accepted.")


@remote(app, "add")
def add(
    session: Session,
    vault: VaultArgument,
    resources: ResourcesArgument,
    exclude_disk: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude-disk", metavar="DISK", help="Of a server: leave this disk out, id or name; repeatable."
        ),
    ] = None,
) -> None:
    """Bind resources to a vault. A server that is there already gets the list of disks that is given now."""
    found = load_vault(session, vault)
    chosen = names.resources(session.client, resources, [found["billing"]["object_type"]])
    if exclude_disk:
        for resource in chosen:
            server = names.server(session.client, resource["id"])
            resource["extra_info"] = {"exclude_volumes": names.disk_ids(server, exclude_disk)}
    path = session.client.v3(f"vaults/{found['id']}/addresources")
    answer = session.client.post(path, {"resources": chosen})
    if session.output.as_json:
        session.output.document(answer)
    else:
        session.output.note(f"Bound {len(answer['add_resource_ids'])}.")


@remote(app, "remove")
def remove(session: Session, vault: VaultArgument, resources: ResourcesArgument, yes: YesOption = False) -> None:
    """Unbind resources and delete all their backups in this vault. It ends in the background."""
    found = load_vault(session, vault)
    chosen = names.resource_ids_of_vault(found, resources)
    session.confirm(f"Unbind {', '.join(resources)} and delete ALL their backups in {found['name']}?", yes=yes)
    path = session.client.v3(f"vaults/{found['id']}/removeresources")
    answer = session.client.post(path, {"resource_ids": chosen})
    if session.output.as_json:
        session.output.document(answer)
    else:
        session.output.note("Accepted.")


def _set_resources(session: Session, vault: str, resources: list[str], action: str) -> None:
    found = load_vault(session, vault)
    chosen = names.resource_ids_of_vault(found, resources)
    path = session.client.v3(f"vaults/{found['id']}/set-resources")
    answer = session.client.put(path, {"resource_ids": chosen, "action": action})
    if session.output.as_json:
        session.output.document(answer)
    else:
        session.output.note(f"Set {len(answer['set_resource_ids'])}.")


def load_vault(session: Session, text: str) -> dict[str, Any]:
    """The vault with this id or name, as GET answers it."""
    found: dict[str, Any] = session.client.get(session.client.v3(f"vaults/{names.vault_id(session.client, text)}"))[
        "vault"
    ]
    return found
