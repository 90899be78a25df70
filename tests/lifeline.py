"""Programs that tests start, and that end with them: a run that is killed ends no fixture, so the kernel has to."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)  # here, not between fork and exec


def end_with_starter() -> None:
    """A `preexec_fn`: the program is killed when the thread that started it ends. The main thread should start it.

    Over exec the kernel remembers it; not over a change of credentials.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
