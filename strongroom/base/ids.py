"""Identifiers: UUIDs with dashes for CBR objects, 32 hex digits for projects, domains and users."""

import os
import re
import time
import uuid
from datetime import datetime

ID_PATTERN = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
HEX_ID_PATTERN = r"[0-9a-f]{32}"
_UUID = re.compile(ID_PATTERN)
# RFC 9562 section 5.7: 48 bits of milliseconds, then 74 random ones with version and variant between them.
_RANDOM = (1 << 80) - 1 ^ 0xF << 76 ^ 0x3 << 62
_VERSION_7 = 7 << 76 | 2 << 62
_HEX32 = re.compile(HEX_ID_PATTERN)


def new_id() -> str:
    """A UUID of version 7, lower case with dashes: vaults, checkpoints, backups, tasks, resources.

    It begins with the time, so the rows of a run lie together in every index that ends with their ids (docs/decisions
    13). Who wants a short random name takes the END of it."""
    number = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big") & _RANDOM | _VERSION_7
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def first_id(moment: datetime) -> str:
    """What sorts before every id that `new_id` made at this time or later."""
    text = f"{max(0, int(moment.timestamp() * 1000)):012x}"
    return f"{text[:8]}-{text[8:]}"


def new_hex_id() -> str:
    """A random 32-digit hex id, the form of projects, domains and users in Keystone."""
    return uuid.uuid4().hex


def is_id(text: str) -> bool:
    """True for a lower-case UUID with dashes."""
    return _UUID.fullmatch(text) is not None


def is_hex_id(text: str) -> bool:
    """True for 32 lower-case hex digits."""
    return _HEX32.fullmatch(text) is not None
