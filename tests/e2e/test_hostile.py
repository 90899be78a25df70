"""Any request at all, by somebody with every role: no 5xx, a sentence in every refusal, and nothing left by it."""

import os
import random
from collections.abc import Iterator

import pytest
from hostile_requests import Attacker
from hostile_world import Rows, World, connect
from reliability import report

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SHORT_WALK, LONG_WALK = 2_000, 30_000
LIFE = 300  # requests until the world is as it was
SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "20261123"))


@pytest.fixture(scope="module")
def still_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """No worker takes a task, so that every row that changes was changed by a request."""
    made = World.build(tmp_path_factory.mktemp("still"))
    made.server.stop()
    made.server.start(worker_group="nobody")
    made.alice.http.close()
    made.bob.http.close()
    made.alice = made.server.client()
    yield made
    made.close()


def _walk(world: World, seed: int, count: int) -> Attacker:
    print(f"seed {seed}")
    with connect(world.server.state) as conn:
        attacker = Attacker(world, Rows(conn), random.Random(seed))
        with attacker:
            for number in range(count):
                if number % LIFE == LIFE - 1:
                    attacker.begin_again()
                attacker.step()
        print(attacker.summary())
        assert attacker.refused > count // 2 and attacker.accepted > count // 50, attacker.summary()
        broken = conn.execute(
            "SELECT count(*) FROM backups b WHERE NOT EXISTS (SELECT 1 FROM vaults v WHERE v.id = b.vault_id) "
            "OR NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.id = b.checkpoint_id)"
        ).fetchone()
        assert broken == (0,)
    with world.server.client() as alice:
        assert alice.call("GET", "/readyz")[0] == 200
    return attacker


def test_no_request_breaks_the_server(still_world: World) -> None:
    """2000 random requests over every operation: no 5xx, the envelope on every refusal, no row from a refused one."""
    _walk(still_world, SEED, SHORT_WALK)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_request_breaks_the_server_for_long(still_world: World) -> None:
    """The same with 30 000 of them, of which more than 20 000 are refused."""
    attacker = _walk(still_world, SEED + 1, LONG_WALK)
    report(
        "hostile requests",
        count=attacker.refused + attacker.accepted,
        seed=SEED + 1,
        refused=attacker.refused,
        answers_of_5xx=attacker.answers(500),
        left_rows=attacker.left_rows,
    )
