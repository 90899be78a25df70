"""Fixtures of the contract suite."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from in_process_api import InProcessApi
from points_world import World, opened_world
from stored_world import StoredWorld, opened_stored_world

from strongroom.control.db import Database


@pytest.fixture
async def api(database: Database) -> AsyncIterator[InProcessApi]:
    """The application on a database of the test's own."""
    async with await InProcessApi.start(database) as started:
        yield started


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    """A project with vaults and resources to be made, whose jobs end as a test says."""
    async with opened_world(database) as opened:
        yield opened


@pytest.fixture
async def stored(database: Database, tmp_path: Path) -> AsyncIterator[StoredWorld]:
    """The same with jobs that really run, on a store in memory."""
    async with opened_stored_world(database, tmp_path) as opened:
        yield opened
