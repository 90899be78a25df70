"""SIGKILL at trace points of both sides of a replication: after a restart it ends by itself, the replica whole."""

from pathlib import Path

import pytest
from harness import OUT_OF_REACH, Client, Server, contents, make_tree
from regions_world import Regions, destination, replicated, replication_vault
from reliability import report

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


class World:
    """Two regions, a folder that changes before each copy, and what every replica has to hold."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.source = base / "source"
        make_tree(self.source, 0, files=6)
        self.regions = Regions(base)
        self.regions.start(self.regions.east)
        self.regions.start(self.regions.west)
        with self.regions.east.client() as east, self.regions.west.client() as west:
            self.vault = east.vault("v", "turbo", [east.register("turbo", "source", self.source)])
            self.target = replication_vault(west)
            self.place = west.register("turbo", "target", self._folder())
        self.expected: dict[str, dict] = {}

    def _folder(self) -> Path:
        (self.base / "target").mkdir()
        return self.base / "target"

    def begin(self, seed: int) -> tuple[str, str]:
        """Change the folder, back it up, ask for its copy: (backup, record)."""
        make_tree(self.source, seed, files=6)
        with self.regions.east.client() as east:
            checkpoint = east.checkpoint(self.vault)
            assert east.settled(checkpoint)["status"] == "available"
            backup = east.backups(checkpoint_id=checkpoint)[0]["id"]
            body = {"replicate": destination(self.regions, self.target)}
            answer = east.ok("POST", f"backups/{backup}/replicate", body)["replication"]
        return backup, answer["replication_record_id"]

    def end(self, backup: str, record: str) -> str:
        with self.regions.east.client() as east:
            done = replicated(east, backup, record)
        replica = done["destination_backup_id"]
        self.expected[replica] = contents(self.source)
        return replica

    def check(self, west: Client, replica: str) -> None:
        log = west.restore(replica, resource_id=self.place)
        assert log["status"] == "success", log
        assert contents(self.base / "target") == self.expected[replica]

    def server_of(self, point: str) -> Server:
        """`copy` runs in the west, `replication` in the east."""
        return self.regions.west if point.startswith("copy:") else self.regions.east

    def restart(self, server: Server, kill_at: str | None = None) -> None:
        server.stop()
        self.regions.start(server, **({"kill_at": kill_at} if kill_at else {}))


def _spread(total: int, count: int) -> list[int]:
    """`count` numbers over 1..total, or as many as there are, neither the first nor the last among them."""
    assert total > 5, f"only {total} trace points"
    count = min(count, total - 2)
    return sorted({1 + total * (i + 1) // (count + 1) for i in range(count)})


def _points(world: World, plan: dict[str, int]) -> list[str]:
    """plan: `operation:kind` -> how many points. They are counted in a run that is not killed."""
    points = []
    for seed, (point, count) in enumerate(plan.items()):
        server = world.server_of(point)
        world.restart(server, f"{point}:{OUT_OF_REACH}")
        world.end(*world.begin(1000 + seed))
        server.stop()
        # How often a side looks at the other, and how many packs there are, differs: the last third may not come.
        points += [f"{point}:{number}" for number in _spread(server.trace_points() * 2 // 3, count)]
        world.regions.start(server)
    return points


def _killed(world: World, points: list[str]) -> None:
    try:
        for seed, point in enumerate(points, 1):
            server = world.server_of(point)
            world.restart(server, point)
            backup, record = world.begin(seed)
            assert server.wait_dead() == -9, f"{point} was not reached"
            world.regions.start(server)
            replica = world.end(backup, record)
            with world.regions.west.client() as west:
                west.quiet()
                world.check(west, replica)
        with world.regions.west.client() as west:
            available = {b["id"] for b in west.backups(status="available", vault_id=world.target)}
            assert available == set(world.expected), "each is there once, and nothing else"
            for replica in world.expected:
                world.check(west, replica)
    finally:
        world.regions.stop()


def test_a_replication_killed_on_either_side_ends_whole(tmp_path: Path) -> None:
    """Killed while the destination writes, and while the source writes what it was told."""
    _killed(World(tmp_path), ["copy:store:14", "replication:database:6"])


@pytest.mark.long
def test_a_replication_killed_at_many_points_ends_whole(tmp_path: Path) -> None:
    """The same at some 45 points: store and database calls of the destination, and of the source."""
    world = World(tmp_path)
    plan = {"copy:store": 24, "copy:database": 10, "replication:database": 10, "replication:store": 5}
    points = _points(world, plan)
    assert len(points) > 36, points
    _killed(world, points)
    report("worker kills, replication", count=len(points), seed=0)
