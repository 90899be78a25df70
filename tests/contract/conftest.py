"""Fixtures of the contract suite."""

from collections.abc import AsyncIterator

import pytest
from in_process_api import InProcessApi

from strongroom.control.db import Database


@pytest.fixture
async def api(database: Database) -> AsyncIterator[InProcessApi]:
    """The application on a database of the test's own."""
    async with await InProcessApi.start(database) as started:
        yield started
