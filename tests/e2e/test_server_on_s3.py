"""A real server whose restore points lie in a real object store, and the way out of there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Server, contents, make_tree
from seaweed import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

pytestmark = pytest.mark.e2e


def test_a_server_keeps_its_restore_points_in_s3(tmp_path: Path, s3_server: S3Server, s3_prefix: str):
    """Backup, change, backup, restore through the API; then `recover` from the bucket alone. No secret in a log."""
    url, keys = f"s3://{BUCKET}/{s3_prefix}", {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    source, back = tmp_path / "source", tmp_path / "back"
    make_tree(source, 5)
    before = contents(source)
    access = {
        "store_url": url,
        "s3_endpoint": s3_server.endpoint,
        "s3_allow_http": "true",
        "log_level": "debug",
    }
    server = Server(tmp_path / "state", **access, s3_access_key=ACCESS_KEY, s3_secret_key=SECRET_KEY).start()
    try:
        with server.client() as client:
            vault = client.vault("vault", "turbo", [client.register("turbo", "tree", source)])
            assert client.settled(client.checkpoint(vault))["status"] == "available"
            (backup,) = client.backups()
            (source / "later").write_bytes(os.urandom(100_000))
            assert client.settled(client.checkpoint(vault))["status"] == "available"
            for name in os.listdir(source):
                (shutil.rmtree if (source / name).is_dir() else os.unlink)(source / name)
            assert client.restore(backup["id"])["status"] == "success"
        assert contents(source) == before
        assert server.stop() == 0
    finally:
        server.kill()
    assert SECRET_KEY not in server.log_path.read_text() + "".join(server.output)
    key = tmp_path / "state" / "master.key"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    environ |= {f"STRONGROOM_{name.upper()}": value for name, value in access.items() if name.startswith("s3_")} | keys
    command = [sys.executable, "-m", "strongroom", "recover", "--store", url, "--key", str(key)]
    listed = subprocess.run([*command, "list", "--json"], env=environ, capture_output=True, timeout=60, check=True)
    first, _ = json.loads(listed.stdout)
    subprocess.run([*command, "restore", first["backup"], str(back)], env=environ, timeout=60, check=True)
    assert contents(back) == before
