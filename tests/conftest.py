"""Fixtures that several tests share. A database is real, fresh, and nobody else's: see `postgres_url`."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import hypothesis
import psycopg
import pytest
from ready_database import ReadyDatabase
from seaweed import S3Server, seaweed

from strongroom.control.db import Database
from strongroom.control.embedded_postgres import EmbeddedPostgres

TEMPLATE = "strongroom"  # the embedded server's own database, migrated once and copied per test
_numbers = itertools.count()

# A loaded machine makes data slowly and answers late; neither says anything about the code.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

# Nothing of a test has to survive a power cut.
SPEED = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


@pytest.fixture(scope="session")
def ready_database(tmp_path_factory: pytest.TempPathFactory) -> ReadyDatabase:
    """A migrated, empty database to copy, made by the first test of the run that asks."""
    return ReadyDatabase.of_run(tmp_path_factory)


@pytest.fixture(scope="session")
def _postgres_template(tmp_path_factory: pytest.TempPathFactory, ready_database: ReadyDatabase) -> Iterator[str]:
    """One PostgreSQL per pytest process (so per xdist worker), with a migrated template; its URL."""
    folder = tmp_path_factory.mktemp("database")
    ready_database.copy_to(folder)
    postgres = EmbeddedPostgres(folder / "postgres", settings=SPEED)
    try:
        yield postgres.start()
    finally:
        postgres.stop()


@contextmanager
def _fresh_database(template_url: str, template: str) -> Iterator[str]:
    admin_url = template_url.replace(f"/{TEMPLATE}?", "/postgres?")
    name = f"test_{next(_numbers)}"
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        yield template_url.replace(f"/{TEMPLATE}?", f"/{name}?")
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_postgres_url(_postgres_template: str) -> Iterator[str]:
    """The URL of a database of the test's own, without any schema."""
    with _fresh_database(_postgres_template, "template0") as url:
        yield url


@pytest.fixture
def postgres_url(_postgres_template: str) -> Iterator[str]:
    """The URL of a migrated, empty database of the test's own."""
    with _fresh_database(_postgres_template, TEMPLATE) as url:
        yield url


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    """An open pool on `postgres_url`."""
    async with await Database.open(postgres_url, max_size=8) as opened:
        yield opened


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS per pytest process, started by the first test that asks; with STRONGROOM_TEST_S3=radosgw the gate
    of a Ceph. Not for tests that kill it."""
    if os.environ.get("STRONGROOM_TEST_S3") == "radosgw":
        from ceph_world import radosgw

        with radosgw(tmp_path_factory.mktemp("ceph")) as gate:
            yield gate
    else:
        with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
            yield server


@pytest.fixture
def s3_prefix() -> str:
    """A place of the test's own in the bucket of `s3_server`."""
    return f"test-{next(_numbers)}"
