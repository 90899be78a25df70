"""`protectable`: what the operator registers for tenants, and what a tenant may protect."""

import enum
import os
from typing import Annotated, Any

import typer

from strongroom.base.units import human_bytes
from strongroom.cli import names
from strongroom.cli.command import Session, YesOption, remote
from strongroom.cli.command import group as command_group

app = command_group("Folders, disks and servers that may be protected.")

DISK_SCHEMES = ("rbd:", "cinder:")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Kind(enum.StrEnum):
    """turbo: a folder. disk: an image file, a device, a volume of Ceph or Cinder. server: a machine with its disks."""

    turbo = enum.auto()
    disk = enum.auto()
    server = enum.auto()


TypeOption = Annotated[
    Kind, typer.Option("--type", help="turbo: a folder; disk: an image file or a block device; server: a machine.")
]


@remote(app, "add")
def add(
    session: Session,
    kind: TypeOption,
    name: Annotated[str, typer.Option(help="What tenants see.")],
    path: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Folder, image file or device on the service's host; of a server or of a disk that is no file its "
            "address, such as libvirt:qemu:///system#web, qemu:/run/web.qmp, nova:cloud/server, "
            "rbd:pool/image or cinder:cloud/volume.",
        ),
    ],
    project: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Whose it is, id or name. Default: yours.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave out what matches; repeatable.")
    ] = None,
    one_file_system: Annotated[
        bool, typer.Option("--one-file-system", help="Do not enter other mounted filesystems.")
    ] = False,
    read_limit: Annotated[
        str | None, typer.Option(metavar="RATE", help="Read at most so many bytes a second, such as 50M.")
    ] = None,
    privileged: Annotated[
        bool,
        typer.Option("--privileged", help="Restores of other resources may write device nodes and setuid bits here."),
    ] = False,
    group: Annotated[
        str | None, typer.Option("--group", metavar="NAME", help="Worker group that reaches it. Default: `default`.")
    ] = None,
    source_host: Annotated[
        str | None, typer.Option("--source-host", metavar="HOST", help="Where it lies: few tasks at once there.")
    ] = None,
) -> None:
    """Register a folder, a disk or a server for a project. For the operator."""
    client = session.client
    body: dict[str, Any] = {
        "project_id": names.project_id(client, project) if project is not None else client.project_id,
        "type": kind.value,
        "name": name,
        "exclude": exclude or [],
        "one_file_system": one_file_system,
        "read_limit_bytes_s": parse_rate(read_limit) if read_limit is not None else None,
        "privileged": privileged,
        "worker_group": group,
        "source_host": source_host,
    } | names.path_members(path if _is_address(kind, path) else os.path.abspath(path))
    made = client.post("/ext/v1/admin/protectables", {"protectable": body})["protectable"]
    session.output.details(made, {"Id": "id", "Name": "name", "Type": "type", "Path": "path", "Project": "project_id"})


@remote(app, "list")
def list_registered(
    session: Session,
    project: Annotated[str | None, typer.Option(metavar="PROJECT", help="Only of this one, id or name.")] = None,
) -> None:
    """Show what is registered, with paths. For the operator."""
    client = session.client
    scope = names.project_id(client, project) if project is not None else None
    rows = client.pages("/ext/v1/admin/protectables", "protectables", project_id=scope)
    columns = {"Id": "id", "Name": "name", "Type": "type", "Path": "path", "Project": "project_id", "Status": "status"}
    if session.output.as_json:
        session.output.document(rows)
        return
    sized = [row | {"size": human_bytes(row["size_bytes"])} for row in rows]
    session.output.table(sized, columns | {"Size": "size"})


@remote(app, "remove")
def remove(
    session: Session,
    protectable: Annotated[str, typer.Argument(metavar="PROTECTABLE", help="Id or name.")],
    project: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="With a name: whose it is. Default: yours.")
    ] = None,
    yes: YesOption = False,
) -> None:
    """Take a registration back. Restore points stay. Refused while a vault holds it. For the operator."""
    client = session.client
    scope = names.project_id(client, project) if project is not None else client.project_id
    chosen = names.registered_id(client, protectable, scope)
    session.confirm(f"Remove the registration of {protectable}?", yes=yes)
    client.delete(f"/ext/v1/admin/protectables/{chosen}")
    session.output.note("Removed.")


@remote(app, "available")
def available(
    session: Session,
    kind: Annotated[Kind | None, typer.Option("--type", help="Only this kind.")] = None,
) -> None:
    """Show what you may protect, and what stands against it."""
    rows = names.protectables(session.client, [kind.value] if kind is not None else names.PROTECTABLE_TYPES)
    columns = {
        "Id": "id",
        "Name": "name",
        "Type": "type",
        "Size GB": "size",
        "Free to protect": "protectable.result",
        "Why not": "protectable.reason",
        "Vault": "protectable.vault.name",
    }
    session.output.table(rows, columns)


@remote(app, "disks")
def disks(session: Session, server: Annotated[str, typer.Argument(metavar="SERVER", help="Id or name.")]) -> None:
    """Show the disks of a server as the last look at it found them."""
    found = names.server(session.client, server)
    if session.output.as_json:
        session.output.document(found["children"])
        return
    columns = {"Id": "id", "Name": "name", "Size GB": "size", "System disk": "detail.bootable"}
    session.output.table(found["children"], columns)


def _is_address(kind: Kind, path: str) -> bool:
    """Whether it is no path of a host."""
    return kind is Kind.server or (kind is Kind.disk and path.startswith(DISK_SCHEMES))


def parse_rate(text: str) -> int:
    """Bytes a second from `500K`, `50M`, `1G` or plain digits. Raises BadParameter."""
    digits, unit = text.rstrip("KMGkmg"), text[len(text.rstrip("KMGkmg")) :].upper()
    if not digits.isascii() or not digits.isdigit() or unit not in _UNITS or int(digits) == 0:
        raise typer.BadParameter(f"{text} is not a rate. Write bytes a second, such as 500K, 50M or 1G.")
    return int(digits) * _UNITS[unit]
