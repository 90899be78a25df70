"""The repair verb: what is damaged or lost here comes back from another copy of the domain.

    rebuild   only when the index does not load
    verify    deep: packs that fail become suspect, so that nothing relies on them
    roots     those that do not open here and do there are put again
    chunks    that are lost here, or lie only in what failed, move over as a copy moves them
    labels    that do not open are put again, under the next number
    verify    deep again: what is still damaged is in the report

It adds and never takes away what can be read; a crash leaves known chunks, and the next run goes on. What the other
copy has lost as well stays lost. A root that is not here at all is not brought back: it may have been deleted; a copy
brings it.
"""

from dataclasses import dataclass

from strongroom.base.errors import Corrupt, InvalidRequest, ObjectMissing
from strongroom.base.streams import Monitor
from strongroom.engine.copy import mend
from strongroom.engine.rebuild import rebuild
from strongroom.engine.repository import Repository
from strongroom.engine.verify import Finding, VerifyReport, verify

ROUNDS_MAX = 3  # a root that is put again may need what nobody looked at before


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """before, after: the deep checks; chunks, bytes: brought; roots: put again."""

    before: VerifyReport
    after: VerifyReport
    roots: tuple[str, ...] = ()
    chunks: int = 0
    bytes: int = 0


def repair(repository: Repository, other: Repository, monitor: Monitor) -> RepairReport:
    """Durable on return; may run again. Raises InvalidRequest for another domain, StoreError, what `monitor` raises."""
    if repository.domain != other.domain:
        raise InvalidRequest(reason="The other repository is no copy of this one: it has another domain.")
    before = verify(repository, None, deep=True, monitor=monitor)
    if any(finding.kind in ("index", "chunk") for finding in before.findings):
        rebuild(repository, monitor)
        before = verify(repository, None, deep=True, monitor=monitor)
    if not before.findings:
        return RepairReport(before=before, after=before)
    roots: list[str] = []
    chunks = size = 0
    after = before
    for _ in range(ROUNDS_MAX):
        roots += _put_roots(repository, other, after.findings)
        report = mend(other, repository, repository.root_names(), monitor)
        _put_labels(repository, other, after.findings)
        after = verify(repository, None, deep=True, monitor=monitor)
        chunks, size = chunks + report.chunks_copied, size + report.bytes_copied
        if not report.chunks_copied or not any(finding.roots for finding in after.findings):
            break
    return RepairReport(before=before, after=after, roots=tuple(roots), chunks=chunks, bytes=size)


def _put_roots(repository: Repository, other: Repository, findings: tuple[Finding, ...]) -> list[str]:
    """Roots that open there and not here. Until it is put again the other copy has it."""
    done = []
    for name in [finding.name for finding in findings if finding.kind == "root"]:
        try:
            root = other.load_root(name)
        except (Corrupt, ObjectMissing):
            continue
        repository.delete_root(name)
        repository.put_root(root)
        done.append(name)
    return done


def _put_labels(repository: Repository, other: Repository, findings: tuple[Finding, ...]) -> None:
    for name in [finding.name for finding in findings if finding.kind == "labels"]:
        try:
            root = other.load_root(name)
            repository.put_labels(root.backup_id, other.load_labels(root))
        except (Corrupt, ObjectMissing):
            continue
