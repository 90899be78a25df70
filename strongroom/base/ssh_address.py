"""The address of a host reached by ssh: `ssh:USER@HOST[:PORT]?path=/etc&path=/srv`, with `%26` for an & in a path."""

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from strongroom.base.errors import InvalidRequest

SCHEME = b"ssh:"
PORT = 22
PATHS_MAX = 64  # as of a host with an agent of its own
# No part can begin with a dash, which ssh would take for an option, or hold what a shell reads.
_ADDRESS = re.compile(
    rb"ssh:([a-z_][a-z0-9_.-]{0,31})@(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9][A-Za-z0-9.-]{0,252})(?::(\d{1,5}))?\?(.+)"
)


@dataclass(frozen=True, kw_only=True)
class SshAddress:
    """paths: of the host, absolute and in one spelling, what is protected of it. host: an IPv6 one without brackets."""

    user: str
    host: str
    port: int
    paths: tuple[bytes, ...]


def parse_ssh_address(address: bytes) -> SshAddress:
    """Raises InvalidRequest."""
    found = _ADDRESS.fullmatch(address)
    port = int(found[3] or PORT) if found else 0
    if found is None or not 0 < port < 65_536:
        raise InvalidRequest(
            reason="Invalid path: the address of a host by ssh is ssh:USER@HOST?path=/etc&path=/srv, with :PORT after "
            "the host when it is not 22."
        )
    paths = []
    for part in found[4].split(b"&"):
        name, _, value = part.partition(b"=")
        if name != b"path":
            raise InvalidRequest(reason="Invalid path: the address of a host by ssh has only `path=` after the ?.")
        paths.append(_normal(unquote_to_bytes(value)))
    if len(paths) > PATHS_MAX:
        raise InvalidRequest(reason=f"Invalid path: name at most {PATHS_MAX} paths of the host.")
    host = found[2].decode("ascii").strip("[]")
    return SshAddress(user=found[1].decode("ascii"), host=host, port=port, paths=tuple(sorted(set(paths))))


def _normal(path: bytes) -> bytes:
    parts = path.split(b"/")
    if not path.startswith(b"/") or b".." in parts or b"\0" in path:
        raise InvalidRequest(reason="Invalid path: each `path=` is an absolute path of the host, without `..`.")
    return b"/" + b"/".join(part for part in parts if part not in (b"", b"."))
