"""Random histories of two vaults: backups, deletes, prunes and copies either way, against a dict of what should be."""

import os
import random
from dataclasses import dataclass, field

import pytest
from fault_store import Fault, FaultStore
from fault_world import MASTER, MONITOR, POOL, PREFIX, Content, World, no_fence
from test_copy import OTHER, THERE

from strongroom.base.errors import StoreError
from strongroom.engine import DomainSettings, Repository, create_repository, open_repository
from strongroom.engine.copy import copy
from strongroom.engine.keys import MasterKey
from strongroom.engine.prune import prune
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
STEPS = 14
POINTS_MAX = 4  # of a place: so that there is always something to delete


@dataclass
class Vault:
    """Where it lies, and the model: by domain, what should be there."""

    prefix: str
    master: MasterKey
    store: MemoryStore = field(default_factory=MemoryStore)
    domains: dict[bytes, dict[str, Content]] = field(default_factory=dict)

    def open(self, domain: bytes) -> Repository:
        return open_repository(self.store, self.prefix, self.master, domain_id=domain, pool=POOL)


class History:
    """One seeded run. Vault 0 and vault 1 have a domain each, and get each other's by copying."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.vaults = (Vault(PREFIX, MASTER), Vault(THERE, OTHER))
        self.own = []
        for vault in self.vaults:
            made = create_repository(vault.store, vault.prefix, vault.master, DomainSettings(), pool=POOL)
            vault.domains[made.domain.id] = {}
            self.own.append(made.domain.id)
        self.blocks = [self.chance.randbytes(40_000) for _ in range(6)]
        self.number = 0

    def step(self) -> str:
        side = self.chance.randrange(2)
        action = self.chance.choice(
            [self.backup, self.backup, self.delete, self.prune, self.copy, self.copy, self.crash]
        )
        return f"{action.__name__} {side}: {action(side)}"

    def backup(self, side: int) -> str:
        vault, domain = self.vaults[side], self.own[side]
        self.number += 1
        name = f"b{self.number}.1"
        content = {(b"%d" % n,): block for n, block in enumerate(self.blocks) if self.chance.random() < 0.5}
        content[(b"new",)] = self.chance.randbytes(5000)
        World().backup(vault.open(domain), name, content)
        vault.domains[domain][name] = content
        return name

    def delete(self, side: int) -> str:
        vault = self.vaults[side]
        for domain, points in vault.domains.items():
            while len(points) > POINTS_MAX or (points and self.chance.random() < 0.4):
                name = self.chance.choice(sorted(points))
                del points[name]
                vault.open(domain).delete_root(name)
        return ""

    def prune(self, side: int) -> str:
        vault = self.vaults[side]
        for domain in vault.domains:
            prune(vault.open(domain), dead=(), monitor=MONITOR)
        return ""

    def _wanted(self, side: int) -> tuple[bytes, list[str]]:
        domain = self.chance.choice(sorted(self.vaults[side].domains))
        points = sorted(self.vaults[side].domains[domain])
        return domain, self.chance.sample(points, self.chance.randint(0, len(points)))

    def copy(self, side: int) -> str:
        source, receiver = self.vaults[side], self.vaults[1 - side]
        domain, names = self._wanted(side)
        report = copy(source.open(domain), receiver.store, receiver.prefix, receiver.master, names, MONITOR, no_fence)
        assert sorted([*report.roots_copied, *report.roots_present]) == sorted(names)
        there = receiver.domains.setdefault(domain, {})
        assert set(report.roots_present) <= set(there)
        there.update({name: source.domains[domain][name] for name in names})
        return f"{names}"

    def crash(self, side: int) -> str:
        """A copy whose machine dies: what has arrived counts when it is there, and nothing else is changed."""
        source, receiver = self.vaults[side], self.vaults[1 - side]
        domain, names = self._wanted(side)
        fault = Fault(at=self.chance.randint(1, 40), crash=True, seed=self.chance.randrange(1000))
        store = FaultStore(receiver.store, fault)
        try:
            copy(source.open(domain), store, receiver.prefix, receiver.master, names, MONITOR, no_fence)
        except StoreError:
            copy(source.open(domain), receiver.store, receiver.prefix, receiver.master, (), MONITOR, no_fence)
        there = receiver.domains.setdefault(domain, {})
        found = set(receiver.open(domain).root_names())
        assert set(there) <= found <= set(there) | set(names)
        there.update({name: source.domains[domain][name] for name in found & set(names)})
        return f"{names} at {fault.at}"

    def problems(self) -> list[str]:
        found = []
        for vault in self.vaults:
            for domain, points in vault.domains.items():
                repository = vault.open(domain)
                found += World(dict(points)).problems(repository)
                if set(repository.root_names()) != set(points):
                    found.append(f"{vault.prefix} has {repository.root_names()}, not {sorted(points)}")
                found += [str(each) for each in verify(repository, None, deep=True, monitor=MONITOR).findings]
        return found


def run(seed: int) -> None:
    history, told = History(seed), []
    for _ in range(STEPS):
        told.append(history.step())
        assert history.problems() == [], (seed, told)
    for side in (0, 1):
        history.prune(side)
        history.prune(side)
    assert history.problems() == [], (seed, told)


def test_two_vaults_that_copy_from_each_other() -> None:
    """After every step both vaults hold exactly what they should, byte for byte, and a deep verify finds nothing."""
    for seed in range(SEED * 1000, SEED * 1000 + 12):
        run(seed)


@pytest.mark.long
def test_two_vaults_in_many_histories() -> None:
    """The same, many times."""
    for seed in range(SEED * 1000, SEED * 1000 + 600):
        run(seed)
