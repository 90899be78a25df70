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


def through_agent(base: Path, repository: Repository, folder: Path, parent: str | None) -> tuple[str, float, int]:
    """(root, seconds of the engine's run, bytes of content that travelled)."""
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
    begun_s = time.monotonic()
    request = BackupRequest(backup_id=new_id(), generation=1, parent=parent)
    report = backup(repository, tree, request, SilentMonitor(), lambda: None)
    seconds = time.monotonic() - begun_s
    channel.send(m.pack(m.Commit()))
    os.waitpid(child, 0)
    wire.close()
    return report.root, seconds, tree.sent_bytes


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
        root, first_s, first_bytes = through_agent(base, repository, base / "data", None)
        walk_s, rescan_s = [], []
        for _ in range(5):
            begun_s = time.monotonic()
            fd = os.open(base / "data", os.O_RDONLY)
            for _part in FolderTree(fd, b"/", SourceOptions(), 0).folders():
                pass
            os.close(fd)
            walk_s.append(time.monotonic() - begun_s)
            root, seconds, sent = through_agent(base, repository, base / "data", root)
            assert sent == 0
            rescan_s.append(seconds)
        print(
            json.dumps(
                {
                    "files": files,
                    "first_s": round(first_s, 2),
                    "first_sent_bytes": first_bytes,
                    "walk_s": round(min(walk_s), 3),
                    "rescan_s": round(min(rescan_s), 3),
                    "ratio": round(min(rescan_s) / min(walk_s), 2),
                }
            )
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)
