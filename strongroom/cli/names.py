"""Names where ids are wanted: an exact name that is unambiguous stands for its id."""

import base64
import os
from collections.abc import Sequence
from typing import Any

from strongroom.base.ids import is_hex_id, is_id
from strongroom.cli.client import Client, Json
from strongroom.cli.errors import NameAmbiguous, NameUnknown

PROTECTABLE_TYPES = ("turbo", "disk", "server")  # the kinds this server has sources for
RESOURCE_TYPES = (*PROTECTABLE_TYPES, "native")  # and hosts with an agent
PROTECTABLES_PAGE = 50  # the most this list answers at once


def vault_id(client: Client, text: str) -> str:
    if is_id(text):
        return text
    rows = client.pages(client.v3("vaults"), "vaults", name=text)
    return _only(rows, text, kind="vault", command="strongroom vault list")


def backup_id(client: Client, text: str) -> str:
    """An own backup; if none has the name, one that was accepted from others: theirs never make ours ambiguous."""
    if is_id(text):
        return text
    rows = client.pages(client.v3("backups"), "backups", name=text)
    if not rows:
        rows = client.pages(client.v3("backups"), "backups", name=text, own_type="shared", member_status="accepted")
    return _only(rows, text, kind="backup", command="strongroom backup list")


def received_id(client: Client, text: str) -> str:
    """A backup that is shared with us, whatever we have decided."""
    if is_id(text):
        return text
    rows = [
        row
        for status in ("pending", "accepted", "rejected")
        for row in client.pages(client.v3("backups"), "backups", name=text, own_type="shared", member_status=status)
    ]
    return _only(rows, text, kind="shared backup", command="strongroom backup list --shared")


def policy_id(client: Client, text: str) -> str:
    if is_id(text):
        return text
    rows = client.get(client.v3("policies"))["policies"]
    return _only(rows, text, kind="policy", command="strongroom policy list")


def organization_policy_id(client: Client, text: str) -> str:
    if is_id(text):
        return text
    rows = client.pages(client.v3("organization-policies"), "policies")
    return _only(rows, text, kind="policy of the organization", command="strongroom organization list")


def project_id(client: Client, text: str) -> str:
    if is_hex_id(text):
        return text
    rows = client.get("/ext/v1/admin/projects")["projects"]
    return _only(rows, text, kind="project", command="strongroom project list")


def domain_id(client: Client, text: str) -> str:
    if is_hex_id(text):
        return text
    rows = client.get("/ext/v1/admin/domains")["domains"]
    return _only(rows, text, kind="domain", command="strongroom domain list")


def user_id(client: Client, text: str) -> str:
    if is_hex_id(text):
        return text
    rows = client.get("/ext/v1/admin/users")["users"]
    return _only(rows, text, kind="user", command="strongroom user list")


def registered_id(client: Client, text: str, project: str) -> str:
    """The operator's view: a registration of one project."""
    if is_id(text):
        return text
    rows = client.pages("/ext/v1/admin/protectables", "protectables", project_id=project)
    return _only(rows, text, kind="registration", command="strongroom protectable list")


def protectables(client: Client, kinds: Sequence[str] = PROTECTABLE_TYPES, **query: Any) -> list[Json]:
    """What the tenant may protect, kind after kind."""
    rows: list[Json] = []
    for kind in kinds:
        if kind == "native":
            known = {row["id"] for row in rows}  # bare metal servers are among the servers
            rows += [row for row in hosts(client, **query) if row["id"] not in known]
            continue
        path, offset = client.v3(f"protectables/{kind}/instances"), 0
        while True:
            page = client.get(path, **query, limit=PROTECTABLES_PAGE, offset=offset)["instances"]
            rows.extend(page)
            offset += len(page)
            if len(page) < PROTECTABLES_PAGE:
                break
    return rows


def hosts(client: Client, **query: Any) -> list[Json]:
    """Registered hosts, in the shape of protectables."""
    rows = client.pages(client.v3("agents"), "agents")
    found = [{"id": row["agent_id"], "type": "OS::Native::Server", "name": row["host_name"]} for row in rows]
    return [row for row in found if all(row[member] == value for member, value in query.items())]


def resources(client: Client, texts: Sequence[str], kinds: Sequence[str] = RESOURCE_TYPES) -> list[Json]:
    """Protectables by name or id, in the order given, each as the API wants a resource: id, type, name."""
    found = []
    for text in texts:
        rows = protectables(client, kinds, **({"id": text} if is_id(text) else {"name": text}))
        matches = [row for row in rows if text in (row["id"], row["name"])]
        chosen = _only(matches, text, kind="resource", command="strongroom protectable available")
        row = next(row for row in matches if row["id"] == chosen)
        found.append({"id": row["id"], "type": row["type"], "name": row["name"]})
    return found


def server(client: Client, text: str) -> Json:
    """A registered server by name or id, with its disks as `children`."""
    (found,) = resources(client, [text], ["server"])
    shown: Json = client.get(client.v3(f"protectables/server/instances/{found['id']}"))["instance"]
    return shown


def disk_ids(server: Json, texts: Sequence[str]) -> list[str]:
    """Disks of one server, as the tenant's list shows it, by id or by name of the device."""
    rows = list(server["children"])
    command = f"strongroom protectable disks {server['name']}"
    return [_only([row for row in rows if text in (row["id"], row["name"])], text, kind="disk", command=command)
            for text in texts]  # fmt: skip


def disk_backup_id(backup: Json, text: str) -> str:
    """The backup of one disk among those of a server's backup, by its id, the disk's id, or the name of the device."""
    prefix = f"{backup['resource_name']}-"
    rows = [
        {"id": row["id"], "name": row["resource_name"].removeprefix(prefix), "disk": row["resource_id"]}
        for row in backup["children"]
    ]
    matches = [row for row in rows if text in (row["id"], row["name"], row["disk"])]
    return _only(matches, text, kind="disk", command=f"strongroom backup show {backup['id']}")


def resource_ids_of_vault(vault: Json, texts: Sequence[str]) -> list[str]:
    """Resources of one vault by name or id: also those whose registration the operator has removed."""
    ids = []
    for text in texts:
        matches = [row for row in vault["resources"] if text in (row["id"], row["name"])]
        ids.append(_only(matches, text, kind="resource", command=f"strongroom vault show {vault['name']}"))
    return ids


def path_members(path: str, member: str = "path") -> dict[str, str]:
    """`path` when it is text, `path_b64` when its bytes are not UTF-8; nothing for the empty path, the whole."""
    raw = os.fsencode(path)
    if not raw:
        return {}
    try:
        return {member: raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{member}_b64": base64.b64encode(raw).decode("ascii")}


def _only(rows: Sequence[Json], text: str, *, kind: str, command: str) -> str:
    ids = [str(row["id"]) for row in rows if text in (row.get("name"), row["id"])]
    if not ids:
        raise NameUnknown(kind=kind, name=text, command=command)
    if len(ids) > 1:
        raise NameAmbiguous(kind=kind, name=text, ids=", ".join(ids))
    return ids[0]
