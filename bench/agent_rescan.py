"""What an unchanged host costs: a rescan through an agent in a process of its own, over TLS, against a bare walk.

python bench/agent_rescan.py [FILES]      prints one JSON line
"""

import json
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from strongroom.agent.backup import run_backup
from strongroom.agent.policy import Policy
from strongroom.base import certificates
from strongroom.base.clock import SystemClock
from strongroom.base.errors import SourceUnreachable
from strongroom.base.ids import new_id
from strongroom.base.streams import SilentMonitor
from strongroom.engine import BackupRequest, DomainSettings, MasterKey, Repository, backup, create_repository
from strongroom.engine.store.open import open_store
from strongroom.sources.base import SourceOptions
from strongroom.sources.files import FolderTree
from strongroom.sources.hosts import messages as m
from strongroom.sources.hosts.channel import Channel
from strongroom.sources.hosts.tree import HostTree
from strongroom.sources.hosts.wire import Wire

ROUNDS = 7


def carry(wire: Wire, channel: Channel) -> None:
    try:
        while True:
            channel.feed(wire.receive())
    except SourceUnreachable:
        channel.end(SourceUnreachable(reason="The other end is done."))


def contexts(base: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    now, key, own = SystemClock().now(), certificates.new_key(), certificates.new_key()
    authority = certificates.make_authority(key, now)
    made = certificates.make_server(authority, key, own, now)
    file = base / "server.pem"
    file.write_text(ssl.DER_cert_to_PEM_cert(made) + certificates.dump_key(own).decode())
    server, agent = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(file)
    agent.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(authority))
    return server, agent


class Run(NamedTuple):
    """seconds: wall of the engine's run; *_cpu_s: of each end, its threads included; sent: bytes of content."""

    root: str
    seconds: float
    server_cpu_s: float
    agent_cpu_s: float
    sent: int


def through_agent(base: Path, repository: Repository, folder: Path, parent: str | None) -> Run:
    near, far = socket.socketpair()
    server, client = contexts(base)
    child = os.fork()
    if not child:
        near.close()
        wire, channel = Wire(client.wrap_socket(far, server_hostname=certificates.SERVER_NAME)), Channel(b"s")
        threading.Thread(target=carry, args=(wire, channel), daemon=True).start()
        channel.attach(wire, 0)
        job = m.BackupJob((m.Root(os.fsencode(folder)),), (), False, None, None, False)
        run_backup(channel, job, Policy(paths=(b"/",), restore=False, restore_paths=()), SystemClock())
        os._exit(0)
    far.close()
    wire, channel = Wire(server.wrap_socket(near, server_side=True)), Channel(b"s")
    threading.Thread(target=carry, args=(wire, channel), daemon=True).start()
    channel.attach(wire, 0)
    payload = channel.take()
    assert payload is not None
    tree = HostTree(channel, m.from_agent(payload).head)
    begun_s, begun_cpu_s = time.monotonic(), time.process_time()
    request = BackupRequest(backup_id=new_id(), generation=1, parent=parent)
    report = backup(repository, tree, request, SilentMonitor(), lambda: None)
    seconds, server_cpu_s = time.monotonic() - begun_s, time.process_time() - begun_cpu_s
    channel.send(m.pack(m.Commit()))
    used = os.wait4(child, 0)[2]
    wire.close()
    return Run(report.root, seconds, server_cpu_s, used.ru_utime + used.ru_stime, tree.sent_bytes)


def main(files: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        for i in range(files):
            folder = base / "data" / f"d{i // 100:05}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"f{i}").write_bytes(b"%d" % i * 20)
        store = open_store(f"file://{base}/store")
        repository = create_repository(store, "vault", MasterKey.create(base / "key"), DomainSettings())
        time.sleep(3)  # change times count when they are two seconds old
        run = first = through_agent(base, repository, base / "data", None)
        walk_s, walk_cpu_s, runs = [], [], []
        for _ in range(ROUNDS):
            begun_s, begun_cpu_s = time.monotonic(), time.process_time()
            fd = os.open(base / "data", os.O_RDONLY)
            for _part in FolderTree(fd, b"/", SourceOptions(), 0).folders():
                pass
            os.close(fd)
            walk_s.append(time.monotonic() - begun_s)
            walk_cpu_s.append(time.process_time() - begun_cpu_s)
            run = through_agent(base, repository, base / "data", run.root)
            assert run.sent == 0
            runs.append(run)
        rescan_s = [run.seconds for run in runs]
        print(
            json.dumps(
                {
                    "files": files,
                    "first_s": round(first.seconds, 2),
                    "first_sent_bytes": first.sent,
                    "walk_s": round(min(walk_s), 3),
                    "rescan_s": round(min(rescan_s), 3),
                    "ratio": round(min(rescan_s) / min(walk_s), 2),
                    "walk_cpu_s": round(min(walk_cpu_s), 3),
                    "agent_cpu_s": round(min(run.agent_cpu_s for run in runs), 3),
                    "server_cpu_s": round(min(run.server_cpu_s for run in runs), 3),
                }
            )
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)
