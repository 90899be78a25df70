"""Become a PostgreSQL program that ends when its starter ends. Run by path, as a script of its own: `python -I -S FILE
STARTER_PID PROGRAM ARG...`. It imports the standard library only and never returns: it ends in execv.

Two things PostgreSQL needs can only be done between fork and exec, and not safely in a threaded server:

1. As root, enter a user namespace of one process in which root is an ordinary user: PostgreSQL refuses uid 0. Files
   stay owned by root at 0700; nothing outside is made readable.
2. Ask the kernel for a SIGINT (PostgreSQL's fast shutdown) when the thread that started us ends. The request survives
   execv, but not a change of credentials: it comes after the namespace.
"""

import ctypes
import errno
import os
import pwd
import signal
import sys
from pathlib import Path

NAMESPACE_FORBIDDEN_EXIT = 77  # the starter turns it into a sentence

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _ordinary_user() -> int:
    """A uid other than 0 that has a name: initdb looks its own name up."""
    users = pwd.getpwall()
    by_name = {user.pw_name: user.pw_uid for user in users}
    return by_name.get("nobody") or next(user.pw_uid for user in users if user.pw_uid != 0)


def _enter_user_namespace(libc: ctypes.CDLL) -> None:
    uid, gid = _ordinary_user(), os.getegid()
    inner_gid = gid or uid
    if libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    Path("/proc/self/setgroups").write_text("deny")  # the kernel wants it before an unprivileged gid_map
    Path("/proc/self/uid_map").write_text(f"{uid} 0 1")
    Path("/proc/self/gid_map").write_text(f"{inner_gid} {gid} 1")


def main() -> None:
    starter_pid, program = int(sys.argv[1]), sys.argv[2]
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        try:
            _enter_user_namespace(libc)
        except OSError as err:
            sys.stderr.write(f"user namespace refused: {errno.errorcode.get(err.errno or 0, 'error')}\n")
            sys.exit(NAMESPACE_FORBIDDEN_EXIT)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != starter_pid:  # it ended before the kernel could watch it
        sys.exit(1)
    os.execv(program, sys.argv[2:])  # noqa: S606


if __name__ == "__main__":
    main()
