"""libvirt's values without libvirt: addresses, definitions, tokens, and which disk is read whole and why."""

import uuid
from xml.etree import ElementTree as etree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.base.errors import InvalidRequest, SourceError, StrongroomError
from strongroom.sources.machines.base import Disk, MachineWanted
from strongroom.sources.machines.libvirt import binding
from strongroom.sources.machines.libvirt.binding import parse_address
from strongroom.sources.machines.libvirt.chain import Token, dump_token, load_token, orphans, own_prefix, plan_reads
from strongroom.sources.machines.libvirt.definition import DiskDefinition, disk_id, read_definition, renewed

MACHINE = "7b3c2f0a-9a54-4a0f-8a43-0d9f5b4f2a11"
DEFINITION = f"""<domain type='qemu'><name>web</name><uuid>{MACHINE}</uuid><genid>{MACHINE}</genid>
  <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type><nvram>/var/lib/nvram/web.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' iothread='1'/><source file='/images/a.qcow2'/>
      <target dev='vda' bus='virtio'/><boot order='2'/><serial>S1</serial><alias name='virtio-disk0'/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/data'/>
      <target dev='vdb' bus='virtio'/><boot order='1'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/x.iso'/><target dev='sda'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='lan'/><model type='virtio'/>
      <target dev='vnet3'/></interface>
    <channel type='unix'><source mode='bind' path='/run/x.sock'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <graphics type='vnc' port='5901'/>
  </devices><seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+110</label></seclabel></domain>"""


def test_an_address_names_a_hypervisor_a_machine_and_options() -> None:
    found = parse_address(b"libvirt:qemu+unix:///session?socket=/run/a#my%23web?scratch=/s&images=/i&foreign=yes")
    assert (found.uri, found.domain) == ("qemu+unix:///session?socket=/run/a", "my#web")
    assert (found.scratch, found.images, found.foreign) == ("/s", "/i", True)


@pytest.mark.parametrize(
    "raw",
    [
        b"libvirt:qemu:///system",
        b"libvirt:qemu:///system#",
        b"libvirt:xen:///system#web",
        b"libvirt:qemu+ssh://host/system#web",
        b"libvirt:qemu://host/system#web",
        b"libvirt:qemu:///system#web?scratch=relative",
        b"libvirt:qemu:///system#web?unknown=1",
        b"libvirt:qemu:///system#web?foreign=perhaps",
        b"qemu:///system#web",
        b"libvirt:qemu:///system#" + b"a" * 2000,
    ],
)
def test_what_is_no_address_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Invalid path"):
        parse_address(raw)


@given(st.binary(max_size=1200).map(lambda tail: b"libvirt:" + tail))
def test_no_address_breaks_the_parser(raw: bytes) -> None:
    try:
        assert parse_address(raw).domain
    except StrongroomError:
        pass


def test_a_definition_is_read() -> None:
    """Own disks only, who boots, what is threaded, whose QEMU it is."""
    found = read_definition(DEFINITION)
    assert [(d.device, d.kind, d.format, d.threaded) for d in found.disks] == [
        ("vda", "file", "qcow2", True),
        ("vdb", "block", "raw", False),
    ]
    assert (found.boot_device, found.firmware, found.agent) == ("vdb", "efi", True)
    assert (found.owner, found.managed_by) == ((64055, 110), None)
    assert found.nics == ({"type": "network", "mac": "52:54:00:aa:bb:cc", "model": "virtio", "network": "lan"},)


def test_a_new_machine_shares_nothing_with_the_old() -> None:
    """Name, UUID, addresses, places and labels are its own; a disk that was plugged in later is there too."""
    files = {"vda": ("/new/a.qcow2", "qcow2"), "vdz": ("/new/z.qcow2", "qcow2")}
    text = renewed(DEFINITION.encode(), name="copy", new_uuid=str(uuid.uuid4()), files=files)
    for old in (MACHINE, "52:54:00", "/images/", "/dev/vg", "vnet3", "S1", "64055", "/run/x.sock", "web.fd", "5901"):
        assert old not in text
    root = etree.fromstring(text)
    disks = {e.find("target").get("dev"): e.find("source").get("file") for e in root.iterfind("./devices/disk")}
    assert disks == {"vda": "/new/a.qcow2", "vdz": "/new/z.qcow2", "sda": "/iso/x.iso"}


@pytest.mark.parametrize(
    ("text", "manager"),
    [
        ("<metadata><v:vm xmlns:v='http://ovirt.org/vm/1.0'/></metadata>", "oVirt"),
        ("<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>", "OpenStack"),
        ("<metadata><k:kubevirt xmlns:k='http://kubevirt.io'/></metadata>", "KubeVirt"),
        ("<sysinfo><system><entry name='manufacturer'>OpenStack Foundation</entry></system></sysinfo>", "OpenStack"),
        ("<metadata><l:libosinfo xmlns:l='http://libosinfo.org/xmlns/libvirt/domain/1.0'/></metadata>", None),
    ],
)
def test_who_manages_a_machine_is_seen(text: str, manager: str | None) -> None:
    found = read_definition(f"<domain><name>x</name><uuid>{MACHINE}</uuid>{text}</domain>")
    assert found.managed_by == manager


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<domain>",
        "<domain/>",
        f"<!DOCTYPE d [<!ENTITY a 'aaaa'>]><domain><name>&a;</name><uuid>{MACHINE}</uuid></domain>",
        f"<domain><uuid>{MACHINE}</uuid><name>" + "a" * (4 << 20) + "</name></domain>",
    ],
)
def test_a_definition_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SourceError):
        read_definition(text)


@given(st.text(max_size=400).map(lambda inside: f"<domain><uuid>{MACHINE}</uuid>{inside}</domain>"))
def test_no_definition_breaks_the_reader(text: str) -> None:
    try:
        read_definition(text)
    except SourceError:
        pass


@given(st.binary(max_size=300) | st.none())
def test_no_token_breaks_the_chain(raw: bytes | None) -> None:
    assert load_token(raw) is None or isinstance(load_token(raw), Token)


def planned(token: Token | bytes | None, *, size: int = 100, fmt: str = "qcow2", full: bool = False) -> str | None:
    disk = Disk(id=disk_id(MACHINE, "vda"), name="vda", size_bytes=size)
    item = DiskDefinition(
        device="vda", kind="file", place="/a", format=fmt, layered=False, threaded=False, boot_order=None
    )
    raw = dump_token(token) if isinstance(token, Token) else token
    wanted = MachineWanted(parent_tokens={} if raw is None else {disk.id: raw}, full=full)
    read = plan_reads(MACHINE, [(disk, item)], wanted, {"strongroom.r.1"}, {})[0]
    assert (read.parent is None) == (read.reason is not None)
    return read.reason


def test_every_doubt_makes_a_disk_whole() -> None:
    good = Token(machine=MACHINE, checkpoint="strongroom.r.1", size=100)
    assert planned(good) is None
    assert "asked for" in str(planned(good, full=True))
    assert "first backup" in str(planned(None))
    assert "another size" in str(planned(good, size=101))
    assert "format raw" in str(planned(good, fmt="raw"))
    assert "is gone" in str(planned(Token(machine=MACHINE, checkpoint="strongroom.r.2", size=100)))
    assert "could not leave" in str(planned(Token(machine=MACHINE, checkpoint="", size=100)))
    assert "another machine" in str(planned(Token(machine=str(uuid.uuid4()), checkpoint="strongroom.r.1", size=100)))
    assert "another way" in str(planned(b'{"kind": "qemu"}'))


def test_only_own_checkpoints_without_a_backup_are_orphans() -> None:
    """Another resource's, another program's and those that tokens name stay."""
    prefix = own_prefix("r")
    names = {f"{prefix}1", f"{prefix}2", f"{own_prefix('r2')}3", "nightly"}
    token = dump_token(Token(machine=MACHINE, checkpoint=f"{prefix}1", size=1))
    assert orphans(prefix, names, [token]) == [f"{prefix}2"]
    assert own_prefix("../x y").removeprefix("strongroom.").strip(".").isalnum()


def test_a_missing_binding_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Neither in the environment nor where Debian puts it."""
    binding.library.cache_clear()
    monkeypatch.setattr(binding, "SYSTEM_FOLDERS", (str(tmp_path),))
    monkeypatch.setitem(binding.sys.modules, "libvirt", None)
    try:
        with pytest.raises(SourceError, match="python3-libvirt"):
            binding.library()
    finally:
        binding.library.cache_clear()
