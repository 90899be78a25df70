"""The way out of an object store: recover lists and restores over S3, also without the index."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import contents, make_tree
from seaweed import BUCKET, S3Server

from strongroom.base.streams import SilentMonitor
from strongroom.engine import BackupRequest, DomainSettings, MasterKey, backup, create_repository
from strongroom.engine.store.open import open_store
from strongroom.sources.base import PointWanted, SourceRef
from strongroom.sources.folder import FolderDriver

pytestmark = pytest.mark.e2e


def test_recover_from_s3(s3_server: S3Server, s3_prefix: str, tmp_path: Path) -> None:
    """Keys and endpoint come from the environment; a lost index is rebuilt in memory, then in the store."""
    make_tree(tmp_path / "tree", 6)
    master = MasterKey.create(tmp_path / "key")
    url, access = f"s3://{BUCKET}/{s3_prefix}", s3_server.access()
    store = open_store(url, access)
    repository = create_repository(store, "vaults/p/v/", master, DomainSettings())
    ref = SourceRef(resource_id="r", type="OS::Sfs::Turbo", path=os.fsencode(tmp_path / "tree"))
    with FolderDriver().open_point(ref, PointWanted()) as point:
        request = BackupRequest(backup_id="first", generation=1, labels={"name": "first"})
        backup(repository, point.stream, request, SilentMonitor(), lambda: None)
    repository.close()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("STRONGROOM_", "AWS_"))}
    environ |= {
        "STRONGROOM_S3_ENDPOINT": str(access.endpoint),
        "STRONGROOM_S3_ACCESS_KEY": str(access.access_key),
        "STRONGROOM_S3_SECRET_KEY": str(access.secret_key),
        "STRONGROOM_S3_ALLOW_HTTP": "true",
        "STRONGROOM_STORE_URL": url,
        "STRONGROOM_MASTER_KEY_FILE": str(tmp_path / "key"),
        "STRONGROOM_STATE": str(tmp_path / "state"),
    }

    def recover(*argv: str) -> Any:
        command = [sys.executable, "-m", "strongroom", "recover", *argv, "--json"]
        done = subprocess.run(command, env=environ, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        # On a slow machine a line of progress comes before, or several.
        lines = [line for line in done.stdout.splitlines() if b'"message_type": "status"' not in line]
        return json.loads(b"\n".join(lines))

    assert [row["state"] for row in recover("list", "--check")] == ["complete"]
    for info in list(store.list("vaults/p/v/")):
        if "/index/" in info.name:
            store.delete(info.name)
    recover("restore", "first", str(tmp_path / "new"))
    assert contents(tmp_path / "new") == contents(tmp_path / "tree")
    assert [row["was_sound"] for row in recover("reindex")] == [False]
    assert [row["was_sound"] for row in recover("reindex")] == [True]
