"""The vendor's Python binding: found, typed as far as we use it, its errors translated.

It is no dependency of ours. Debian's `python3-libvirt` fits the libvirt of its host and cannot be had from PyPI without
a compiler and libvirt's headers, so a virtual environment takes these modules, and only these, from where Debian puts
them. `pip install libvirt-python` into the environment works too and is preferred when it is there.
"""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from strongroom.base.errors import InvalidRequest, SourceDenied, SourceError, SourceGone

SYSTEM_FOLDERS = ("/usr/lib/python3/dist-packages", "/usr/lib64/python3/site-packages")
SCHEME = b"libvirt:"
ADDRESS_BYTES_MAX = 1024
VERSION_MIN = 7_003_000  # a parent for each disk, and bitmaps that all stay active; major * 10^6 + minor * 10^3
_MODULES = ("libvirtmod", "libvirt")  # in the order they import each other
_T = TypeVar("_T")


class Checkpoint(Protocol):
    """virDomainCheckpoint."""

    def getName(self) -> str: ...
    def getXMLDesc(self, flags: int = 0) -> str: ...
    def delete(self, flags: int = 0) -> int: ...


class Domain(Protocol):
    """virDomain, what we use of it."""

    def name(self) -> str: ...
    def UUIDString(self) -> str: ...
    def XMLDesc(self, flags: int = 0) -> str: ...
    def isActive(self) -> int: ...
    def isPersistent(self) -> int: ...
    def state(self, flags: int = 0) -> list[int]: ...
    def create(self) -> int: ...
    def destroy(self) -> int: ...
    def undefineFlags(self, flags: int = 0) -> int: ...
    def hasManagedSaveImage(self, flags: int = 0) -> int: ...
    def managedSaveRemove(self, flags: int = 0) -> int: ...
    def snapshotNum(self, flags: int = 0) -> int: ...
    def blockInfo(self, path: str, flags: int = 0) -> list[int]: ...
    def jobInfo(self) -> list[int]: ...
    def jobStats(self, flags: int = 0) -> dict[str, Any]: ...
    def abortJob(self) -> int: ...
    def backupBegin(self, backupXML: str, checkpointXML: str | None, flags: int = 0) -> int: ...
    def backupGetXMLDesc(self, flags: int = 0) -> str: ...
    def listAllCheckpoints(self, flags: int = 0) -> list[Checkpoint]: ...
    def fsFreeze(self, mountpoints: Sequence[str] | None = None, flags: int = 0) -> int: ...
    def fsThaw(self, mountpoints: Sequence[str] | None = None, flags: int = 0) -> int: ...
    def agentSetResponseTimeout(self, timeout: int, flags: int = 0) -> int: ...


class Pool(Protocol):
    """virStoragePool."""

    def XMLDesc(self, flags: int = 0) -> str: ...
    def refresh(self, flags: int = 0) -> int: ...


class Connection(Protocol):
    """virConnect, what we use of it."""

    def close(self) -> int: ...
    def getLibVersion(self) -> int: ...
    def getVersion(self) -> int: ...
    def lookupByName(self, name: str) -> Domain: ...
    def lookupByUUIDString(self, uuid: str) -> Domain: ...
    def listAllDomains(self, flags: int = 0) -> list[Domain]: ...
    def defineXML(self, xml: str) -> Domain: ...
    def storagePoolLookupByName(self, name: str) -> Pool: ...


@dataclass(frozen=True, kw_only=True)
class Address:
    """libvirt:qemu:///system#web?scratch=/srv/scratch&images=/srv/images&foreign=yes

    uri      of a libvirt on this host       domain  name or UUID
    scratch  folder for what the guest overwrites while it is read; None: the folder of its first image
    images   folder for the disks of new machines; None: libvirt's pool "default", else beside the old disks
    foreign  back it up although another system manages it
    """

    uri: str
    domain: str
    scratch: str | None = None
    images: str | None = None
    foreign: bool = False


def parse_address(raw: bytes) -> Address:
    """Raises InvalidRequest, with the form that is wanted, for what is no address or leads to another host."""
    text = os.fsdecode(raw[:ADDRESS_BYTES_MAX].removeprefix(SCHEME))
    uri, _, rest = text.partition("#")
    domain, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    foreign = options.pop("foreign", "no")
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    if (
        not raw.startswith(SCHEME)
        or not domain
        or len(raw) > ADDRESS_BYTES_MAX
        or parts.scheme not in ("qemu", "qemu+unix")
        or parts.path not in ("/system", "/session")
        or set(options) - {"scratch", "images"}
        or not all(map(os.path.isabs, options.values()))
        or foreign not in ("yes", "no")
    ):
        raise InvalidRequest(
            reason="Invalid path: write libvirt:qemu:///system#NAME, and after a question mark scratch= and images= "
            "with absolute paths and foreign=yes where they are needed."
        )
    if parts.netloc:
        raise InvalidRequest(
            reason=f"Invalid path: the machine is on another host ({parts.netloc}), but its disks are read through a "
            "local socket. Run a worker on that host, and register the machine for its group."
        )
    return Address(uri=uri, domain=unquote(domain), foreign=foreign == "yes", **options)


@functools.cache
def library() -> Any:
    """The module `libvirt`. Raises SourceError, with what to install, when there is none for this Python."""
    try:
        found = _import_module()
    except ImportError as err:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SourceError(
            reason="libvirt's Python binding is missing: install the package python3-libvirt (it fits when "
            f"the system's Python is this one's {version}), or `pip install libvirt-python` beside Strongroom.",
            detail=str(err),
        ) from err
    found.registerErrorHandler(_quiet, None)  # it writes each error to stderr otherwise
    return found


def _import_module() -> ModuleType:
    try:
        return importlib.import_module("libvirt")
    except ImportError:
        for name in _MODULES:
            spec = PathFinder.find_spec(name, list(SYSTEM_FOLDERS))
            if spec is None or spec.loader is None:
                raise ImportError(f"{name} is in none of {', '.join(SYSTEM_FOLDERS)}") from None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        return sys.modules["libvirt"]


def _quiet(context: object, error: object) -> None:
    return None


@contextmanager
def connected(uri: str) -> Iterator[Connection]:
    """A connection of its own for one piece of work. Raises SourceGone, SourceDenied, SourceError."""
    lib = library()
    try:
        connection: Connection = lib.open(uri)
    except lib.libvirtError as err:
        refusals = (lib.VIR_ERR_AUTH_FAILED, lib.VIR_ERR_AUTH_CANCELLED, lib.VIR_ERR_ACCESS_DENIED)
        denied = err.get_error_code() in refusals or "Permission denied" in _text(err)
        reason = (
            f"libvirt at {uri} does not let this program in. Run the worker as root or in the group libvirt."
            if denied
            else f"libvirt at {uri} does not answer. Check that its daemon runs."
        )
        raise (SourceDenied if denied else SourceGone)(reason=reason, detail=_text(err)) from err
    try:
        yield connection
    finally:
        with suppress(lib.libvirtError):
            connection.close()


def require_domain(connection: Connection, name: str) -> Domain:
    """By name or UUID. Raises SourceGone, SourceError."""
    lib = library()
    for lookup in (connection.lookupByName, connection.lookupByUUIDString):
        try:
            return lookup(name)
        except lib.libvirtError as err:
            if err.get_error_code() not in (lib.VIR_ERR_NO_DOMAIN, lib.VIR_ERR_INVALID_ARG):
                raise translated(err, f"look up the machine {name}") from err
    raise SourceGone(reason=f"The machine {name} does not exist under libvirt any more.")


def call(doing: str, function: Callable[..., _T], *arguments: object) -> _T:
    """One call of the binding; `doing` completes the sentence "libvirt could not ...". Raises SourceError."""
    try:
        return function(*arguments)
    except library().libvirtError as err:
        raise translated(err, doing) from err


def error_code(err: BaseException) -> int:
    """Of the vendor's error that an error of ours was raised from; 0: none."""
    cause = err.__cause__
    return int(cause.get_error_code()) if isinstance(cause, library().libvirtError) else 0


def translated(err: Any, doing: str) -> SourceError:
    """The vendor's error as ours."""
    lib = library()
    code = err.get_error_code()
    kind: type[SourceError] = SourceError
    if code == lib.VIR_ERR_NO_DOMAIN:
        kind = SourceGone
    elif code in (lib.VIR_ERR_ACCESS_DENIED, lib.VIR_ERR_AUTH_FAILED, lib.VIR_ERR_OPERATION_DENIED):
        kind = SourceDenied
    return kind(reason=f"libvirt could not {doing}: {_text(err)}.", detail=f"libvirt error {code}")


def _text(err: Any) -> str:
    """Its message on one line, bounded."""
    return " ".join(str(err.get_error_message() or err).split())[:300].rstrip(".")
