"""Fixtures of the suite of storages."""

import pytest
from harness import Server
from ready_database import ReadyDatabase


@pytest.fixture(scope="session", autouse=True)
def _servers_begin_ready(ready_database: ReadyDatabase) -> None:
    """Servers of the harness take their database from there."""
    Server.ready_database = ready_database
