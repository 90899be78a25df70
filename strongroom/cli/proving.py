"""What `scrub` and `engine verify` print: what was proven, what was found, what it hits, what to do.

For people one line a finding and what follows from it; for programs the same as values.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from strongroom.base.units import human_bytes

if TYPE_CHECKING:
    from strongroom.engine.scrub import ScrubReport
    from strongroom.engine.verify import Finding, VerifyReport

NAMES_SHOWN_MAX = 20  # for people; programs get all that the report names


def scrub_summary(report: "ScrubReport") -> Mapping[str, object]:
    return {
        "findings": [{"kind": f.kind, "name": f.name, "reason": f.reason} for f in report.findings],
        "domains": report.domains,
        "objects": report.objects,
        "bytes": report.bytes,
        "packs": report.packs,
        "packs_read": report.packs_read,
        "unproven": [{"name": name, "reason": reason} for name, reason in report.unproven],
        "unproven_count": report.unproven_count,
        "strays": list(report.strays),
        "strays_count": report.strays_count,
    }


def scrub_lines(report: "ScrubReport") -> list[str]:
    lines = [f"{finding.kind} {finding.name}: {finding.reason}" for finding in report.findings]
    lines.append(
        f"{report.objects} objects are what was written ({human_bytes(report.bytes)}, "
        f"{report.packs_read} of {report.packs} packs read); {len(report.findings)} findings."
    )
    if report.unproven_count:
        lines.append(f"{report.unproven_count} objects have no digest: only a verify with the key proves them.")
        lines += [f"  {name}: {reason}" for name, reason in report.unproven[:NAMES_SHOWN_MAX]]
    if report.strays_count:
        lines.append(f"{report.strays_count} objects belong to no repository:")
        lines += [f"  {name}" for name in report.strays[:NAMES_SHOWN_MAX]]
    if report.findings:
        lines.append("Verify with the key to learn which restore points are hit, and what can be repaired.")
    return lines


# By kind of finding: what brings the data back, or the most of it.
_AGAIN = (
    "Back up the same source again: what did not change there comes back. Or repair from a copy. Then verify again."
)
TO_DO = {
    "root": "This backup cannot be read any more. Bring it back from a copy (repair), or delete it.",
    "labels": "The backup restores; what it was renamed to since is lost. Bring it back from a copy, or leave it.",
    "manifest": _AGAIN,
    "index": "Run the rebuild of the index (recover reindex; rebuild), then verify again.",
    "chunk": "Run the rebuild of the index first. What is still missing comes from the live source, or from a copy.",
    "pack": _AGAIN,
}


def finding_values(finding: "Finding") -> Mapping[str, object]:
    """With the first files it hits, and how many there are."""
    return {
        "kind": finding.kind,
        "name": finding.name,
        "reason": finding.reason,
        "roots": list(finding.roots),
        "paths": [{"root": root, "path": path_text(path)} for root, path in finding.paths],
        "paths_count": finding.paths_count,
        "to_do": TO_DO[finding.kind] if finding.roots else "No backup needs it; prune removes it.",
    }


def path_text(path: tuple[bytes, ...]) -> str:
    return b"/".join(path).decode(errors="backslashreplace") or "/"


def verify_summary(report: "VerifyReport") -> Mapping[str, object]:
    return {
        "findings": [finding_values(finding) for finding in report.findings],
        "roots": report.roots,
        "objects": report.objects,
        "bytes": report.bytes,
        "digests_added": report.digests_added,
        "packs": report.packs,
        "packs_recent": report.packs_recent,
    }


def verify_lines(report: "VerifyReport", labels: Mapping[str, str]) -> list[str]:
    """labels: what people call the roots."""
    lines = []
    for finding in report.findings:
        values = finding_values(finding)
        lines.append(f"{finding.kind} {finding.name}: {finding.reason}")
        if finding.roots:
            lines.append("  hits " + ", ".join(labels.get(root, root) for root in finding.roots[:NAMES_SHOWN_MAX]))
        for root, path in finding.paths[:NAMES_SHOWN_MAX]:
            lines.append(f"    {labels.get(root, root)}: {path_text(path)}")
        if finding.paths_count > NAMES_SHOWN_MAX:
            lines.append(f"    and {finding.paths_count - NAMES_SHOWN_MAX} more of {finding.paths_count}")
        lines.append(f"  {values['to_do']}")
    share = 100 * report.packs_recent // max(report.packs, 1)
    lines.append(
        f"{report.roots} backups, {report.objects} packs checked ({human_bytes(report.bytes)} read), "
        f"{len(report.findings)} findings. {share} % of the packs were proven in the last 30 days."
    )
    return lines
