"""A PostgreSQL that was made and migrated once a run; tests copy its folder instead of making their own.

A first start spends most of its time on initdb and on the schema. Where those are not what a test is about, they are
taken from here: an empty, migrated database without any row of ours, so keys, accounts and projects are still made by
the server's own first start, in each test anew.
"""

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from strongroom.control import migrate
from strongroom.control.embedded_postgres import EmbeddedPostgres


class ReadyDatabase:
    """The folder of a cluster that is stopped. Workers of one run share it: who comes first makes it, under a lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_run(cls, tmp_path_factory: pytest.TempPathFactory) -> "ReadyDatabase":
        base = tmp_path_factory.getbasetemp()
        return cls((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ready-database")

    def copy_to(self, state: Path) -> None:
        """Put `postgres` into a state folder, which is made if it is missing."""
        state.mkdir(mode=0o700, exist_ok=True)
        with self._folder.with_name(f"{self._folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._folder.exists():
                self._make()
        # The folder's owner is not always its starter (ARCHITECTURE, "The embedded PostgreSQL").
        command = ["cp", "-a", "--reflink=auto", str(self._folder / "postgres"), str(state / "postgres")]
        subprocess.run(command, check=True)

    def _make(self) -> None:
        making = self._folder.with_name(f"{self._folder.name}.making")
        making.mkdir(mode=0o700)
        postgres = EmbeddedPostgres(making / "postgres", settings={"fsync": "off"})
        try:
            migrate.upgrade(postgres.start())
        finally:
            postgres.stop()
        making.rename(self._folder)
