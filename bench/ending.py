"""How a bench ends that is told to: as one that is interrupted, so that it takes its servers with it."""

import signal
import sys


def end_on_sigterm() -> None:
    """From now on SIGTERM raises SystemExit in the main thread: `finally` and context managers do the rest."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
