"""`source`: what can be protected from this host, and what will work, before anything is registered.

It needs no server: it asks hypervisor, storage or folder itself, so it runs where the worker would, as its user.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strongroom.base.units import human_bytes
from strongroom.cli.command import JsonOption, group
from strongroom.cli.errors import EXIT_FAILED
from strongroom.cli.local import LocalStateOption
from strongroom.cli.output import Output

if TYPE_CHECKING:
    from strongroom.sources.base import SourceRef

app = group("What can be protected from this host, and what will work. Needs no server.")

CHECKED = "source-check"  # stands for the id of a resource, which there is none of


@app.command("check")
def check(
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS",
            help="As it would be registered: a folder, an image file, a device, rbd:POOL/IMAGE, "
            "libvirt:qemu:///system#NAME, qemu:/run/vm/qmp.sock, nova:CLOUD/SERVER, cinder:CLOUD/VOLUME, "
            "ssh:USER@HOST?path=/srv.",
        ),
    ],
    state: LocalStateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a backup of it can do: consistent? incremental? room? Exit code 1 when none would start."""
    path = os.fsencode(address if _has_scheme(address) else os.path.abspath(address))
    if path.startswith(b"ssh:"):
        found = _look_by_ssh(path, state)
    else:
        found = _look_at_machine(path) if _is_machine(path) else _look(path)
    output = Output(as_json=as_json)
    if as_json:
        output.document(found | {"address": address})
    else:
        _show(output, address, found)
    if not found["readable"]:
        raise typer.Exit(EXIT_FAILED)


@app.command("list")
def list_machines(
    uri: Annotated[str, typer.Argument(metavar="URI", help="Of a libvirt on this host.")] = "qemu:///system",
    as_json: JsonOption = False,
) -> None:
    """Show the machines of a hypervisor with the addresses to register them by."""
    from urllib.parse import quote

    from strongroom.sources.machines.libvirt.driver import discover

    rows = [
        {"name": name, "uuid": uuid, "power": power, "managed_by": manager, "address": f"libvirt:{uri}#{quote(name)}"}
        for name, uuid, power, manager in discover(uri)
    ]
    columns = {"Name": "name", "Power": "power", "Managed by": "managed_by", "Address": "address"}
    Output(as_json=as_json).table(rows, columns)


def _has_scheme(address: str) -> bool:
    """A path with a colon in it is written with a slash before."""
    return ":" in address.partition("/")[0]


def _is_machine(path: bytes) -> bool:
    from strongroom.sources.open import MACHINE_DRIVERS

    return path.partition(b":")[0] in MACHINE_DRIVERS


def _look_at_machine(path: bytes) -> dict[str, Any]:
    from strongroom.sources.base import SourceRef
    from strongroom.sources.open import machine_driver_for

    found = machine_driver_for(path).inspect(SourceRef(resource_id=CHECKED, type="OS::Nova::Server", path=path))
    return {
        "type": "OS::Nova::Server",
        "exists": found.exists,
        "readable": found.readable,
        "reason": found.reason,
        "power": found.power,
        "size_bytes": sum(disk.size_bytes for disk in found.disks),
        "disks": [asdict(disk) for disk in found.disks],
        "abilities": [asdict(ability) for ability in found.abilities],
        "detail": dict(found.detail),
    }


def _look_by_ssh(path: bytes, state: Path | None) -> dict[str, Any]:
    from strongroom.base.ssh_address import parse_ssh_address
    from strongroom.config import load_settings
    from strongroom.sources.abilities import host_abilities
    from strongroom.sources.base import SourceRef
    from strongroom.sources.hosts.driver import HostDriver
    from strongroom.sources.hosts.ssh import SshStation
    from strongroom.state import SSH_FOLDER

    settings = load_settings({"state": str(state) if state else None}, os.environ)
    address = parse_ssh_address(path)
    station = SshStation(address, settings.state_dir / SSH_FOLDER)
    roots = tuple((root, ()) for root in address.paths)
    ref = SourceRef(resource_id=CHECKED, type="OS::Ironic::BareMetalServer", path=path, roots=roots)
    found = HostDriver(station).inspect(ref)
    return {
        "type": ref.type,
        "exists": found.exists,
        "readable": found.readable,
        "reason": found.reason,
        "size_bytes": found.size_bytes or None,
        "abilities": [asdict(ability) for ability in host_abilities(restores=station.restores)]
        if found.readable
        else [],
        "detail": dict(found.detail),
    }


def _look(path: bytes) -> dict[str, Any]:
    from strongroom.sources.abilities import abilities
    from strongroom.sources.open import driver_for

    ref = _ref(path)
    found = driver_for(ref.type, path).inspect(ref, measure=False)
    able = [asdict(ability) for ability in abilities(ref)] if found.readable else []
    obstacle = next((ability["reason"] for ability in able if ability["name"] == "readable"), None)
    return {
        "type": ref.type,
        "exists": found.exists,
        "readable": found.readable and obstacle is None,
        "reason": found.reason or obstacle,
        "size_bytes": found.size_bytes,
        "abilities": able,
        "detail": dict(found.detail),
    }


def _ref(path: bytes) -> "SourceRef":
    from strongroom.sources.base import SourceRef

    if os.path.isdir(path):
        return SourceRef(resource_id=CHECKED, type="OS::Sfs::Turbo", path=path)
    return SourceRef(resource_id=CHECKED, type="OS::Cinder::Volume", path=path)


def _show(output: Output, address: str, found: dict[str, Any]) -> None:
    size = "" if found["size_bytes"] is None else human_bytes(found["size_bytes"])
    facts = found | {"address": address, "size": size}
    output.details(facts, {"Address": "address", "Type": "type", "Power": "power", "Size": "size"})
    disks = found.get("disks", ())
    if disks:
        output.say("")
        rows = [(d["name"], human_bytes(d["size_bytes"]), d["is_boot"], d["place"]) for d in disks]
        output.cells(rows, ["Disk", "Size", "Boots", "Place"])
    if found["abilities"]:
        output.say("")
        able = [(a["name"], "yes" if a["works"] else "no", a["reason"]) for a in found["abilities"]]
        output.cells(able, ["Ability", "Works", "Why"])
    output.say("")
    output.say("A backup can be made." if found["readable"] else f"No backup can be made: {found['reason']}")
