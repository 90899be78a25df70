"""Who this host is: a private key that never leaves it, a certificate for one resource, and the server that issued it.

    agent.json   server, agent id        agent.key   P-256, mode 0600
    agent.crt    the certificate         authority.crt   the only issuer that is believed, ours and the server's

A new key and its certificate replace the old ones in one rename of a folder's link, so that the two always fit.
"""

import base64
import binascii
import contextlib
import json
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from strongroom.base.certificates import (
    FINGERPRINT_CHARS,
    SERVER_NAME,
    Key,
    dump_key,
    fingerprint,
    is_issued_by,
    new_key,
    new_request,
    serial_of,
)
from strongroom.base.errors import ConfigError, SourceUnreachable
from strongroom.sources.hosts.messages import Enroll, Issued, Refused, greet, greeting
from strongroom.sources.hosts.wire import GREETING_BYTES_MAX, Kind, Wire, keep_alive

CONNECT_S_MAX = 20.0
GREETING_S_MAX = 20.0
_CURRENT, _KEY, _CERTIFICATE, _AUTHORITY, _SERVER = "current", "agent.key", "agent.crt", "authority.crt", "agent.json"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Of an enrolled host. folder: where the files of the current certificate are."""

    server: str
    agent_id: str
    folder: Path


def load_identity(home: Path) -> Identity:
    """Raises ConfigError."""
    folder = home / _CURRENT
    try:
        known = json.loads((folder / _SERVER).read_text())
        return Identity(server=str(known["server"]), agent_id=str(known["agent_id"]), folder=folder)
    except FileNotFoundError as err:
        raise ConfigError(
            reason=f"This host is not enrolled ({home} has no identity). Run `strongroom agent enroll` with a token."
        ) from err
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigError(reason=f"{folder / _SERVER} cannot be used: {err}. Enroll again.") from err


def enroll(home: Path, server: str, token: str) -> Identity:
    """Use a one-time token: make a key, have it certified, keep both. Raises ConfigError, SourceUnreachable."""
    fingerprint = _fingerprint_of(token)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the token says which authority it must be, and that is checked below
    context.verify_mode = ssl.CERT_NONE
    wire = connect(server, context)
    try:
        authority = wire.receive(GREETING_BYTES_MAX, GREETING_S_MAX)
        if authority.kind != Kind.AUTHORITY:
            raise SourceUnreachable(reason=f"{server} is not the address for agents of a Strongroom.")
        _require_issuer(wire, authority.payload, fingerprint, server)
        key = new_key()
        wire.send(Kind.ENROLL, greet(Enroll(token.strip(), new_request(key), socket.gethostname()[:255])))
        issued = _read_issued(wire)
    finally:
        wire.close()
    identity = Identity(server=server, agent_id=issued.agent_id, folder=home / _CURRENT)
    save(home, identity, dump_key(key), issued.certificate, authority.payload)
    return identity


def _read_issued(wire: Wire) -> Issued:
    """The answer to ENROLL. Raises ConfigError with the server's reason."""
    answer = wire.receive(GREETING_BYTES_MAX, GREETING_S_MAX)
    if answer.kind == Kind.REFUSED:
        raise ConfigError(reason=greeting(answer.payload, Refused).reason)
    if answer.kind != Kind.ISSUED:
        raise SourceUnreachable(reason="The server answered something else than it was asked.")
    issued: Issued = greeting(answer.payload, Issued)
    return issued


def client_context(identity: Identity) -> ssl.SSLContext:
    """TLS 1.3, our certificate, one authority. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        authority = ssl.DER_cert_to_PEM_cert(_authority(identity))
        context.load_verify_locations(cadata=authority)
        context.load_cert_chain(identity.folder / _CERTIFICATE, identity.folder / _KEY)
    except (OSError, ssl.SSLError, ValueError) as err:
        raise ConfigError(reason=f"The files in {identity.folder} cannot be used: {err}. Enroll again.") from err
    return context


def connect(server: str, context: ssl.SSLContext) -> Wire:
    """A connection to HOST:PORT after its handshake. Raises SourceUnreachable, ConfigError for no such address."""
    host, colon, port = server.rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise ConfigError(reason=f"{server} is no address for agents. Give HOST:PORT.")
    try:
        plain = socket.create_connection((host.strip("[]"), int(port)), CONNECT_S_MAX)
        keep_alive(plain)
        return Wire(context.wrap_socket(plain, server_hostname=SERVER_NAME))
    except ssl.SSLCertVerificationError as err:
        raise SourceUnreachable(
            reason=f"{server} is not the server this host is enrolled at: {err.verify_message}.", detail=repr(err)
        ) from err
    except (OSError, OverflowError) as err:
        raise SourceUnreachable(reason=f"{server} cannot be reached: {err}.", detail=repr(err)) from err


def replace(home: Path, identity: Identity, key: Key, certificate: bytes) -> None:
    """Another certificate of the same server, for a key that was just made."""
    save(home, identity, dump_key(key), certificate, _authority(identity))


def _authority(identity: Identity) -> bytes:
    return (identity.folder / _AUTHORITY).read_bytes()


def save(home: Path, identity: Identity, key: bytes, certificate: bytes, authority: bytes) -> None:
    """Durable and whole: a folder of its own, and one rename of the link that says which is current."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = home / f"identity-{serial_of(certificate)}"
    folder.mkdir(mode=0o700, exist_ok=True)
    known = json.dumps({"server": identity.server, "agent_id": identity.agent_id}).encode()
    files = {
        _KEY: key,
        _CERTIFICATE: ssl.DER_cert_to_PEM_cert(certificate).encode(),
        _AUTHORITY: authority,
        _SERVER: known,
    }
    for name, data in files.items():
        fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(fd)
    link = home / f"{_CURRENT}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.rename(home / _CURRENT)
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
    for old in home.glob("identity-*"):
        if old != folder:
            for file in old.iterdir():
                file.unlink()
            with contextlib.suppress(OSError):
                old.rmdir()


def _fingerprint_of(token: str) -> str:
    found, dot, secret = token.strip().partition(".")
    try:
        if not dot or not secret or len(found) != FINGERPRINT_CHARS or len(base64.b32decode(found)) != 20:
            raise ValueError("it has not the form of one")
    except (ValueError, binascii.Error) as err:
        raise ConfigError(reason=f"This is no enrolment token: {err}. Copy it whole.") from err
    return found


def _require_issuer(wire: Wire, authority: bytes, wanted: str, server: str) -> None:
    """The server's own certificate must be of the authority that the token names. Raises ConfigError."""
    own = wire.peer_certificate()
    if own is None or fingerprint(authority) != wanted or not is_issued_by(own, authority):
        raise ConfigError(
            reason=f"{server} is not the server that made this token. Nothing was sent to it. Check the address."
        )
