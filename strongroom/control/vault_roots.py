"""Which roots of a vault go and which stay, by the domain they lie in: what deletions and prunes are told to do."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from strongroom.control.subjects import VaultRef


@dataclass(frozen=True, kw_only=True)
class DeleteJob:
    """Backups to delete, oldest first, each with the name of its root (None: it never had one).

    count         of them as tenants count: a machine's with its disks is one
    keep          roots of the vault's own domain that stay
    foreign       of other domains in the vault, by id in hex: roots to delete
    keep_foreign  the same: roots that stay
    """

    vault: VaultRef
    backups: tuple[tuple[str, str | None], ...]
    count: int
    keep: frozenset[str]
    foreign: Mapping[str, frozenset[str]] = field(default_factory=dict)
    keep_foreign: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PruneJob:
    """What a prune must keep: roots named by a row, and every root of the backups that open tasks are making.

    keep          roots of the vault's own domain
    keep_foreign  of other domains in the vault, by id in hex
    copying       domains (None: its own) into which an open task copies: none of their roots is dead
    """

    vault: VaultRef
    keep: frozenset[str]
    open_backups: frozenset[str]
    keep_foreign: Mapping[str, frozenset[str]] = field(default_factory=dict)
    copying: frozenset[str | None] = frozenset()

    def is_dead(self, domain_id: str | None, root: str) -> bool:
        """For a root that was listed before this was read: what is committed or copied meanwhile is in neither."""
        if domain_id in self.copying:
            return False
        if domain_id is not None:
            return root not in self.keep_foreign.get(domain_id, ())
        return root not in self.keep and root.rpartition(".")[0] not in self.open_backups


def own_roots(rows: Iterable[dict[str, Any]]) -> frozenset[str]:
    return frozenset(row["root"] for row in rows if row["root"] and row["domain_id"] is None)


def foreign_roots(rows: Iterable[dict[str, Any]]) -> dict[str, frozenset[str]]:
    """By domain."""
    found: dict[str, set[str]] = {}
    for row in rows:
        if row["root"] and row["domain_id"] is not None:
            found.setdefault(row["domain_id"], set()).add(row["root"])
    return {domain: frozenset(roots) for domain, roots in found.items()}
