"""What `scrub` and `engine verify` print: what was proven, what was found, what it hits, what to do.

For people one line a finding and what follows from it; for programs the same as values.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from strongroom.base.units import human_bytes

if TYPE_CHECKING:
    from strongroom.engine.scrub import ScrubReport

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
