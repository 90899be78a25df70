"""A real Ceph of one monitor and one memory OSD, and its S3 gate, on free ports of the loopback, for one process."""

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
from seaweed import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

from strongroom.base.errors import StoreError
from strongroom.engine.store.s3 import S3Store

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

# The gate's own default for its monitor is `secure`, which needs cephx.
GATE_SETTINGS = """
[client.gate]
rgw_data = {place}/gate
rgw_frontends = beast endpoint=127.0.0.1:{port}
ms_mon_client_mode = crc
"""
GATE_STARTED_WITHIN_S = 120


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


class Gate(S3Server):
    """A radosgw."""

    obeys_among_versions = False  # seen with 16.2.15: each put is a new version

    def __init__(self, port: int) -> None:
        self.port = port


@contextmanager
def radosgw(place: Path) -> Iterator[Gate]:
    """A cluster with a radosgw, where BUCKET can be written to. Half a minute: it makes its pools."""
    assert shutil.which("radosgw"), "install the package radosgw (make guests does)"
    gate = Gate(_free_port())
    with ceph(place) as cluster:
        (place / "gate").mkdir()
        with cluster.conf.open("a") as conf:
            conf.write(GATE_SETTINGS.format(place=place, port=gate.port))
        named = ("-n", "client.gate", "-c", str(cluster.conf))
        with _daemon("radosgw", "-f", *named):
            wait_until(lambda: _listens(gate.port), "the gate listens", GATE_STARTED_WITHIN_S)
            keys = (f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
            user = ("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests", *keys, *named)
            subprocess.run(user, check=True, capture_output=True, timeout=60)
            store = S3Store(BUCKET, "", gate.access())
            store._client.request("PUT", BUCKET, "", {})
            wait_until(lambda: _works(store), "objects can be written")
            yield gate


def _works(store: S3Store) -> bool:
    try:
        store.check()
    except StoreError:
        return False
    return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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
