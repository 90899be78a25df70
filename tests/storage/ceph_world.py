"""A real Ceph of one monitor and one memory OSD, on free ports of the loopback, for one test process."""

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import wait_until
from lifeline import end_with_starter

MEMORY_BYTES = 1 << 30
SETTINGS = """[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port}]
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
run_dir = {place}/run
log_file = {place}/$name.log
admin_socket = {place}/run/$name.asok
keyring = /dev/null
public_network = 127.0.0.0/8
ms_bind_ipv6 = false
[mon]
mon_data = {place}/mon
[osd]
osd_data = {place}/osd
osd_objectstore = memstore
memstore_device_bytes = {memory}
"""


@dataclass(frozen=True, kw_only=True)
class Ceph:
    """A cluster with the pool `vols`."""

    conf: Path

    def rbd(self, *command: str) -> str:
        words = ["rbd", "--conf", str(self.conf), *command]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout

    def address(self, image: str) -> bytes:
        return os.fsencode(f"rbd:vols/{image}@{self.conf}")

    def write(self, image: str, *orders: str) -> None:
        """Orders of qemu-io, on the live image."""
        words = [part for order in orders for part in ("-c", order)]
        name = f"rbd:vols/{image}:conf={self.conf}"
        subprocess.run(["qemu-io", "-f", "raw", *words, name], check=True, capture_output=True, timeout=60)

    def content(self, image: str) -> bytes:
        words = ["rbd", "--conf", str(self.conf), "export", "--no-progress", f"vols/{image}", "-"]
        return subprocess.run(words, check=True, capture_output=True, timeout=60).stdout


@contextmanager
def ceph(place: Path) -> Iterator[Ceph]:
    """Start it, stop it; five seconds. Skips where Ceph is not installed."""
    if shutil.which("ceph-osd") is None or shutil.which("rbd") is None:
        pytest.skip("Ceph is not installed")
    for name in ("mon", "osd", "run"):
        (place / name).mkdir()
    fsid, conf = str(uuid.uuid4()), place / "ceph.conf"
    port = _free_port()
    conf.write_text(SETTINGS.format(fsid=fsid, port=port, place=place, memory=MEMORY_BYTES))

    def run(*command: str) -> str:
        done = subprocess.run([*command, "-c", str(conf)], check=True, capture_output=True, text=True, timeout=60)
        return done.stdout

    with ExitStack() as daemons:
        address = f"[v2:127.0.0.1:{port}]"
        run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, f"{place}/monmap")
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{place}/monmap")
        daemons.enter_context(_daemon("ceph-mon", "-f", "-i", "a", "-c", str(conf)))
        run("ceph", "osd", "create")
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(uuid.uuid4()))
        daemons.enter_context(_daemon("ceph-osd", "-f", "-i", "0", "-c", str(conf)))
        wait_until(lambda: "1 up" in run("ceph", "osd", "stat"), "the OSD is up")
        run("ceph", "osd", "pool", "create", "vols", "8")
        run("rbd", "pool", "init", "vols")
        yield Ceph(conf=conf)


@contextmanager
def _daemon(*command: str) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, preexec_fn=end_with_starter)  # noqa: PLW1509
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
