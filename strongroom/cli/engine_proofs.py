"""`strongroom engine verify`, `scrub` and `repair`: proofs of a repository in a folder, and what mends it.

    engine verify REPO [--shallow] [--sample PERCENT]
    engine scrub REPO [--sample PERCENT]
    engine repair REPO --from OTHER [--from-key FILE]

Options and exit codes as in docs/CLI.md; parsed by engine.py.
"""

import argparse
import contextlib
import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from strongroom.base.errors import ConfigError, Corrupt, ObjectMissing
from strongroom.base.streams import Monitor
from strongroom.cli.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from strongroom.engine import Repository

ALL_PERCENT = 100.0

Outcome = tuple[int, Mapping[str, object], list[str]]  # exit code, summary, lines for people


def run_scrub(options: argparse.Namespace, url: str, monitor: Monitor) -> Outcome:
    from strongroom.cli.proving import scrub_lines, scrub_summary
    from strongroom.engine.scrub import scrub
    from strongroom.engine.store.open import open_store

    if not os.path.isdir(options.repo):
        raise ConfigError(reason=f"There is no repository in {options.repo}.")
    report = scrub(open_store(url), monitor=monitor, sample=options.sample / 100)
    return EXIT_FAILED if report.findings else EXIT_OK, scrub_summary(report), scrub_lines(report)


def run_verify(options: argparse.Namespace, repository: "Repository", monitor: Monitor) -> Outcome:
    from strongroom.cli.proving import verify_lines, verify_summary
    from strongroom.engine.verify import verify

    sample = None if options.shallow or options.sample >= ALL_PERCENT else options.sample / 100
    seed = int(repository.clock.now().timestamp())  # which of the packs that were never read come first
    report = verify(repository, None, deep=not options.shallow, monitor=monitor, sample=sample, seed=seed)
    labels = backup_labels(repository, {root for finding in report.findings for root in finding.roots})
    return EXIT_FAILED if report.findings else EXIT_OK, verify_summary(report), verify_lines(report, labels)


def backup_labels(repository: "Repository", roots: Collection[str]) -> dict[str, str]:
    """What people call these roots; those that do not open keep their names."""
    labels = {}
    for name in roots:
        with contextlib.suppress(Corrupt, ObjectMissing):
            label = repository.load_root(name).labels.get("label")
            if isinstance(label, str):
                labels[name] = label
    return labels


def run_repair(options: argparse.Namespace, repository: "Repository", url: str, monitor: Monitor) -> Outcome:
    """`url` is the other repository's; a key file of its own, unless one is named."""
    from strongroom.cli.proving import verify_lines, verify_summary
    from strongroom.engine.key_files import load_key, open_domain
    from strongroom.engine.repair import repair
    from strongroom.engine.store.open import open_store

    if not os.path.isdir(options.other):
        raise ConfigError(reason=f"There is no repository in {options.other}.")
    key = load_key(options.from_key or os.path.join(options.other, ".master.key"))
    other = open_domain(open_store(url), "", repository.domain.id, key, pool=repository.pool)
    report = repair(repository, other, monitor)
    labels = backup_labels(repository, {root for finding in report.after.findings for root in finding.roots})
    lines = verify_lines(report.after, labels)
    lines.append(
        f"{len(report.before.findings)} findings before; {report.chunks} chunks and {len(report.roots)} backups "
        f"came from {options.other}."
    )
    summary = {
        **verify_summary(report.after),
        "before": verify_summary(report.before)["findings"],
        "roots_repaired": list(report.roots),
        "chunks_repaired": report.chunks,
        "bytes_repaired": report.bytes,
    }
    still_hit = any(finding.roots for finding in report.after.findings)
    return EXIT_FAILED if still_hit else EXIT_OK, summary, lines
