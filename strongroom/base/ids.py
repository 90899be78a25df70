"""Identifiers: UUIDs with dashes for CBR objects, 32 hex digits for projects, domains and users."""

import re
import uuid

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_HEX32 = re.compile(r"[0-9a-f]{32}")


def new_id() -> str:
    """A random UUID, lower case with dashes: vaults, checkpoints, backups, tasks, resources."""
    return str(uuid.uuid4())


def new_hex_id() -> str:
    """A random 32-digit hex id, the form of projects, domains and users in Keystone."""
    return uuid.uuid4().hex


def is_id(text: str) -> bool:
    """True for a lower-case UUID with dashes."""
    return _UUID.fullmatch(text) is not None


def is_hex_id(text: str) -> bool:
    """True for 32 lower-case hex digits."""
    return _HEX32.fullmatch(text) is not None
