"""`strongroom engine scrub`: proofs of a repository in a folder.

    engine scrub REPO [--sample PERCENT]

Options and exit codes as in docs/CLI.md; parsed by engine.py.
"""

import argparse
import os
from collections.abc import Mapping

from strongroom.base.errors import ConfigError
from strongroom.base.streams import Monitor
from strongroom.cli.errors import EXIT_FAILED, EXIT_OK


def run_scrub(options: argparse.Namespace, url: str, monitor: Monitor) -> tuple[int, Mapping[str, object], list[str]]:
    """(exit code, summary, lines for people)."""
    from strongroom.cli.proving import scrub_lines, scrub_summary
    from strongroom.engine.scrub import scrub
    from strongroom.engine.store.open import open_store

    if not os.path.isdir(options.repo):
        raise ConfigError(reason=f"There is no repository in {options.repo}.")
    report = scrub(open_store(url), monitor=monitor, sample=options.sample / 100)
    return EXIT_FAILED if report.findings else EXIT_OK, scrub_summary(report), scrub_lines(report)
