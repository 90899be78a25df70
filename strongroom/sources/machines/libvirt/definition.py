"""A domain's XML: which disks and cards it has, who manages it, and what a new machine is made of it.

Pure: text in, values and text out. The XML comes from libvirt or from a restore point of it; it is bounded, and one
with a document type is refused, so no entity can grow.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as etree
from xml.etree.ElementTree import Element

from strongroom.base.errors import SourceError
from strongroom.base.units import MIB

XML_BYTES_MAX = 4 * MIB
AGENT_CHANNEL = "org.qemu.guest_agent.0"

# Whoever made the machine keeps what he knows of it in the metadata, under a name space of his own.
_MANAGERS = {
    "http://ovirt.org/": "oVirt",
    "http://openstack.org/": "OpenStack",
    "http://kubevirt.io": "KubeVirt",
    "https://kubevirt.io": "KubeVirt",
}
_MADE_BY = {"oVirt": "oVirt", "RDO": "OpenStack", "OpenStack Foundation": "OpenStack", "KubeVirt": "KubeVirt"}
_SOURCE_OF = {"file": "file", "block": "dev", "network": "name", "volume": "volume", "dir": "dir"}


@dataclass(frozen=True, kw_only=True)
class DiskDefinition:
    """One disk as the XML has it.

    device  "vda"; kind: "file", "block", "network", "volume", ...; place: file, device or image, "" where none
    format  of the image: "qcow2", "raw", ...
    layered it has an image behind it, as the XML of a running machine says
    threaded QEMU serves it by an I/O thread
    """

    device: str
    kind: str
    place: str
    format: str
    layered: bool
    threaded: bool
    boot_order: int | None


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What we know of a domain. agent: None no channel, else whether the guest's agent is connected (running only).

    owner  uid and gid of its QEMU, None: that of libvirt's daemon
    """

    name: str
    uuid: str
    disks: tuple[DiskDefinition, ...]
    nics: tuple[Mapping[str, str], ...]
    firmware: str
    managed_by: str | None
    agent: bool | None
    owner: tuple[int, int] | None

    @property
    def boot_device(self) -> str | None:
        ordered = sorted((d.boot_order, d.device) for d in self.disks if d.boot_order is not None)
        if ordered:
            return ordered[0][1]
        return self.disks[0].device if self.disks else None


def disk_id(machine_uuid: str, device: str) -> str:
    """The same for the life of the disk: a UUID made of the machine's and the device's name."""
    return str(uuid.uuid5(uuid.UUID(machine_uuid), device))


def parse_xml(text: str | bytes) -> Element:
    """Raises SourceError for what is no XML of a bounded size."""
    raw = text.encode() if isinstance(text, str) else text
    if len(raw) > XML_BYTES_MAX or b"<!" in raw.replace(b"<!--", b"").replace(b"<![CDATA[", b""):
        raise SourceError(reason="The machine's definition is too long, or has a document type. Look at its XML.")
    try:
        return etree.fromstring(raw)  # noqa: S314 - bounded, and no entity can be declared without "<!"
    except (etree.ParseError, ValueError) as err:
        raise SourceError(reason="The machine's definition is not XML.", detail=str(err)) from err


def read_definition(text: str | bytes) -> Definition:
    """Raises SourceError."""
    root = parse_xml(text)
    machine_uuid = _text(root, "uuid")
    try:
        uuid.UUID(machine_uuid)
    except ValueError as err:
        raise SourceError(reason="The machine's definition has no UUID.") from err
    return Definition(
        name=_text(root, "name"),
        uuid=machine_uuid,
        disks=tuple(_disk(element, root) for element in disk_elements(root)),
        nics=tuple(_nic(element) for element in root.iterfind("./devices/interface")),
        firmware=_firmware(root),
        managed_by=_managed_by(root),
        agent=_agent(root),
        owner=_owner(root),
    )


def disk_elements(root: Element) -> list[Element]:
    """Disks that hold a machine's own data: no CD-ROMs and floppies, nothing that it may only read."""
    return [
        element
        for element in root.iterfind("./devices/disk")
        if element.get("device", "disk") == "disk"
        and element.find("readonly") is None
        and element.find("transient") is None
        and _device(element)
    ]


def renewed(text: bytes, *, name: str, new_uuid: str, files: Mapping[str, tuple[str, str]]) -> str:
    """The definition of a new machine: its own name, UUID, network addresses and disks, and nothing else of the old.

    files  by device: (path, format) of the new disk. Disks that are not among them are left out, those the definition
           does not have (plugged in while it ran) are added on virtio. Raises SourceError.
    """
    root = parse_xml(text)
    _set(root, "name", name)
    _set(root, "uuid", new_uuid)
    devices = root.find("devices")
    if devices is None:
        raise SourceError(reason="The machine's definition has no devices.")
    _renew_disks(devices, root, files)
    for nic in devices.iterfind("interface"):
        _drop(nic, "mac", "target")
    for parent in (root, *root.iter()):
        _drop(parent, "alias", "seclabel")
    for element in devices.iterfind("channel"):
        source = element.find("source")
        if element.get("type") == "unix" and source is not None:
            element.remove(source)  # libvirt names a socket after the machine
    for element in devices.iterfind("graphics"):
        if element.get("port"):
            element.set("port", "-1")
            element.set("autoport", "yes")
    _drop(root, "genid")
    for nvram in root.iterfind("./os/nvram"):
        nvram.text = None  # made anew of its template
    return etree.tostring(root, encoding="unicode")


def _renew_disks(devices: Element, root: Element, files: Mapping[str, tuple[str, str]]) -> None:
    wanted = dict(files)
    for element in disk_elements(root):
        file = wanted.pop(_device(element), None)
        if file is None:
            devices.remove(element)
            continue
        _drop(element, "source", "backingStore", "mirror", "serial", "wwn", "auth", "encryption")
        _point_to(element, *file)
    for device, file in sorted(wanted.items()):
        element = etree.SubElement(devices, "disk", {"device": "disk"})
        etree.SubElement(element, "target", {"dev": device, "bus": _bus(device)})
        _point_to(element, *file)


def _point_to(element: Element, path: str, image_format: str) -> None:
    element.set("type", "file")
    driver = element.find("driver")
    if driver is None:
        driver = etree.SubElement(element, "driver", {"name": "qemu"})
    driver.set("type", image_format)
    etree.SubElement(element, "source", {"file": path})


def _bus(device: str) -> str:
    return {"sd": "scsi", "hd": "ide"}.get(device[:2], "virtio")


def _disk(element: Element, root: Element) -> DiskDefinition:
    kind = element.get("type", "file")
    source, driver, boot = element.find("source"), element.find("driver"), element.find("boot")
    backing = element.find("backingStore")
    place = "" if source is None else source.get(_SOURCE_OF.get(kind, "file"), "")
    order = "" if boot is None else boot.get("order", "")
    return DiskDefinition(
        device=_device(element),
        kind=kind,
        place=place,
        format="raw" if driver is None else driver.get("type", "raw"),
        layered=backing is not None and backing.get("type") is not None,
        threaded=(driver is not None and driver.get("iothread") is not None) or _on_threaded_controller(element, root),
        boot_order=int(order) if order.isdigit() else None,
    )


def _on_threaded_controller(element: Element, root: Element) -> bool:
    target, address = element.find("target"), element.find("address")
    if target is None or target.get("bus") != "scsi":
        return False
    index = "0" if address is None else address.get("controller", "0")
    return any(
        controller.get("index", "0") == index and controller.find("driver[@iothread]") is not None
        for controller in root.iterfind("./devices/controller[@type='scsi']")
    )


def _nic(element: Element) -> Mapping[str, str]:
    mac, model, source = element.find("mac"), element.find("model"), element.find("source")
    found = {
        "type": element.get("type", ""),
        "mac": "" if mac is None else mac.get("address", ""),
        "model": "" if model is None else model.get("type", ""),
    }
    for key in ("network", "bridge", "dev", "portgroup"):
        if source is not None and source.get(key):
            found[key] = source.get(key, "")
    return found


def _firmware(root: Element) -> str:
    system, loader = root.find("os"), root.find("./os/loader")
    if system is not None and (
        system.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")
    ):
        return "efi"
    return "bios"


def _managed_by(root: Element) -> str | None:
    manager: str | None
    for element in root.iterfind("./metadata/*"):
        for space, manager in _MANAGERS.items():
            if element.tag.startswith("{" + space):
                return manager
    for entry in root.iterfind("./sysinfo/system/entry"):
        manager = _MADE_BY.get((entry.text or "").strip())
        if entry.get("name") == "manufacturer" and manager is not None:
            return manager
    return None


def _agent(root: Element) -> bool | None:
    for element in root.iterfind("./devices/channel/target"):
        if element.get("name") == AGENT_CHANNEL:
            return element.get("state") == "connected"
    return None


def _owner(root: Element) -> tuple[int, int] | None:
    """Of `<seclabel model='dac'><label>+64055:+110</label>`, which only a running machine has."""
    for element in root.iterfind("seclabel"):
        uid, _, gid = (element.findtext("label") or "").replace("+", "").partition(":")
        if element.get("model") == "dac" and uid.isdigit() and gid.isdigit():
            return int(uid), int(gid)
    return None


def _device(element: Element) -> str:
    target = element.find("target")
    return "" if target is None else target.get("dev", "")


def _text(root: Element, tag: str) -> str:
    return (root.findtext(tag) or "").strip()


def _set(root: Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = etree.SubElement(root, tag)
    element.text = text


def _drop(parent: Element, *tags: str) -> None:
    for tag in tags:
        for element in parent.findall(tag):
            parent.remove(element)
