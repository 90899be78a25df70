"""Fixtures of the end-to-end suite."""

import pytest
from harness import Server
from ready_database import ReadyDatabase


@pytest.fixture(scope="session", autouse=True)
def _servers_begin_ready(ready_database: ReadyDatabase) -> None:
    """Servers of the harness take their database from there, unless a test says otherwise."""
    Server.ready_database = ready_database
