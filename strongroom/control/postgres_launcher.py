"""Become a PostgreSQL program that ends when its starter ends. Run by path, as a script of its own: `python -I -S FILE
STARTER_PID DATA_DIR PROGRAM ARG...`. It imports the standard library only and never returns: it ends in execv.

What PostgreSQL needs and a threaded server cannot safely do between fork and exec:

1. PostgreSQL refuses uid 0. As root, one of two ways, whichever this machine allows:
   a. a user namespace of one process, in which root is an ordinary user; files stay owned by root;
   b. where namespaces are forbidden (containers, chroots): the user `nobody` with one capability of root left, to pass
      closed folders (CAP_DAC_OVERRIDE). The data folder is given to that user, because PostgreSQL wants to own it.
   Nothing is made readable to others in either way: every folder above the data stays root's, at 0700.
2. initdb looks its own name up. A uid that has none gets one in a namespace, where that is allowed.
3. Ask the kernel for a SIGINT (PostgreSQL's fast shutdown) when the thread that started us ends. The request survives
   execv, but not a change of credentials: it comes last.
"""

import ctypes
import os
import pwd
import signal
import sys
from pathlib import Path

# Exit codes that the starter turns into sentences.
ROOT_REFUSED_EXIT = 77
NAMELESS_EXIT = 78

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h, these four
_PR_GET_SECUREBITS = 27
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2  # linux/securebits.h

_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h, from here on
_CAP_DAC_OVERRIDE = 1
# All are in the set that Docker leaves to root. KILL is the starter's: to end the server, also by PDEATHSIG.
_NEEDED = {"CHOWN": 0, "DAC_OVERRIDE": _CAP_DAC_OVERRIDE, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8}


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    """32 capabilities; the kernel takes two of these, for 64."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _checked(result: int, what: str) -> int:
    """The result of a C call. Raises OSError if it is an error."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _ordinary_user() -> pwd.struct_passwd:
    """A user other than root that has a name."""
    users = [user for user in pwd.getpwall() if user.pw_uid != 0]
    if not users:
        raise OSError("there is no user but root")
    return next((user for user in users if user.pw_name == "nobody"), users[0])


# --- a: a namespace ---------------------------------------------------------------------------------------------------


def _enter_user_namespace(libc: ctypes.CDLL, user: pwd.struct_passwd) -> None:
    """Be `user` in a namespace of our own; outside we stay who we are."""
    uid, gid = os.geteuid(), os.getegid()
    _checked(libc.unshare(_CLONE_NEWUSER), "unshare")
    Path("/proc/self/setgroups").write_text("deny")  # the kernel wants it before an unprivileged gid_map
    Path("/proc/self/uid_map").write_text(f"{user.pw_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid or user.pw_uid} {gid} 1")


def _namespace_allowed(libc: ctypes.CDLL, user: pwd.struct_passwd) -> bool:
    """Tried in a child: there is no way back out, and in it we could not take the data folder back any more."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _enter_user_namespace(libc, user)
            code = 0
        except OSError as err:
            sys.stderr.write(f"user namespace refused: {err}\n")
            sys.stderr.flush()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


# --- b: another user with one capability ------------------------------------------------------------------------------


def _require_capabilities(libc: ctypes.CDLL) -> None:
    header, sets = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_CapabilitySets * 2)()
    _checked(libc.capget(ctypes.byref(header), sets), "capget")
    missing = [name for name, number in _NEEDED.items() if not sets[0].effective & 1 << number]
    if missing:
        raise OSError(f"root has not the capabilities {', '.join(missing)} here")


def _become(libc: ctypes.CDLL, user: pwd.struct_passwd) -> None:
    """Be `user` for good, with CAP_DAC_OVERRIDE and nothing else, over execv (that is what "ambient" means).

    NO_SETUID_FIXUP keeps capabilities over setuid, and it lets access(2) count them: PostgreSQL asks access(2) whether
    its own program may be run, and that may be in a closed folder, too.
    """
    bits = _checked(libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0), "securebits")
    _checked(libc.prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "securebits")
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    only = 1 << _CAP_DAC_OVERRIDE
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    sets = (_CapabilitySets * 2)(_CapabilitySets(only, only, only), _CapabilitySets(0, 0, 0))
    _checked(libc.capset(ctypes.byref(header), sets), "capset")
    _checked(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0), "ambient capability")


# --- either -----------------------------------------------------------------------------------------------------------


def _give(data_dir: Path, uid: int, gid: int) -> None:
    """Give the data folder and all in it to `uid`, if it is not its already: the machine may allow another way than
    at the last start. The folder itself comes last and after a sync, so that a crash repeats the walk."""
    if not data_dir.exists() or data_dir.stat().st_uid == uid:
        return
    for _, folders, files, folder_fd in os.fwalk(data_dir.resolve(), topdown=False):
        for name in folders + files:
            os.chown(name, uid, gid, dir_fd=folder_fd, follow_symlinks=False)
    os.sync()
    os.chown(data_dir, uid, gid)


def _leave_root(libc: ctypes.CDLL, data_dir: Path) -> None:
    user = _ordinary_user()
    if _namespace_allowed(libc, user):
        _give(data_dir, 0, os.getegid())
        _enter_user_namespace(libc, user)
    else:
        _require_capabilities(libc)
        _give(data_dir, user.pw_uid, user.pw_gid)
        _become(libc, user)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def main() -> None:
    starter_pid, data_dir, program = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    libc = ctypes.CDLL(None, use_errno=True)
    refused_exit = ROOT_REFUSED_EXIT
    try:
        if os.geteuid() == 0:
            _leave_root(libc, data_dir)
        elif Path(program).name == "initdb" and not _has_name(os.geteuid()):
            refused_exit = NAMELESS_EXIT
            _enter_user_namespace(libc, _ordinary_user())
    except OSError as err:
        sys.stderr.write(f"{err}\n")
        sys.exit(refused_exit)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != starter_pid:  # it ended before the kernel could watch it
        sys.exit(1)
    os.execv(program, sys.argv[3:])  # noqa: S606


if __name__ == "__main__":
    main()
