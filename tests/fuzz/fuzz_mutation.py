"""Seeded, structure-aware damage to the bytes of a format: what a fuzzer feeds to a parser.

Three ways, mixed: bytes as bytes (flips, cuts, splices), numbers where a fixed layout may have them (counts and lengths
of every width, set to what breaks arithmetic), and values inside msgpack or JSON, which stay well-formed and are wrong
in meaning. Bytes inside a value that are a document of their own are opened and damaged too. The same seed gives the
same inputs.
"""

import json
import random
from collections.abc import Callable
from typing import Any

import msgpack

Mutation = Callable[[random.Random, bytes], bytes]

NUMBERS = (-(1 << 63), -(1 << 31) - 1, -2, -1, 0, 1, 2, 8, 9, 63, 64, 255, 256, 4095, 4096, 4097, 65535, 65536)
LARGE = (*((1 << bits) + by for bits in (16, 24, 31, 32, 40, 48, 53, 62, 63) for by in (-1, 0, 1)), (1 << 64) - 1)
SCALARS: tuple[Any, ...] = (
    *NUMBERS, *LARGE, None, True, False, 0.5, float("inf"), float("nan"), "", "a", "tree", "block", "\x00", "\u00e9",
    b"", b".", b"..", b"/", b"a/b", b"\0", b"../../etc", b"x" * 300, bytes(32), b"\xff" * 32, bytes(40), bytes(80),
)  # fmt: skip
CONTAINERS: tuple[Callable[[], Any], ...] = (
    list, dict, lambda: [[]], lambda: [0] * 12, lambda: [b""] * 5, lambda: [None] * 5000, lambda: {"a": 1},
    lambda: {0: {0: 0}}, lambda: nested(64), lambda: nested(1500), lambda: [[b"x", 1]] * 3,
    lambda: {i: i for i in range(9)},
)  # fmt: skip
TAGS = (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01", b"\xd6\xff\x00\x00\x00\x00", b"\xc7\x0c\xff" + b"\xff" * 12, b"\xc1")  # fmt: skip
PACKED_BYTES_MAX = 1 << 20  # a document that grew beyond this is fed no further


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def damage_bytes(chance: random.Random, data: bytes) -> bytes:
    """One to four small wounds anywhere."""
    raw = bytearray(data)
    for _ in range(1 << chance.getrandbits(2) % 3):
        at = chance.randrange(len(raw) + 1)
        way = chance.randrange(9)
        if way == 0 and raw:
            raw[at % len(raw)] ^= 1 << chance.getrandbits(3)
        elif way == 1 and raw:
            raw[at % len(raw)] = chance.getrandbits(8)
        elif way == 2:
            del raw[at:]
        elif way == 3:
            del raw[at : at + 1 + chance.getrandbits(4)]
        elif way == 4:
            raw[at:at] = chance.randbytes(1 + chance.getrandbits(3))
        elif way == 5:
            raw[at:at] = raw[at : at + 1 + chance.getrandbits(6)]
        elif way == 6:
            other = chance.randrange(len(raw) + 1)
            raw[at : at + 8] = raw[other : other + 8]
        elif way == 7:
            raw[at:at] = chance.choice(TAGS)
        else:
            raw = bytearray(damage_numbers(chance, bytes(raw)))
    return bytes(raw)


def damage_numbers(chance: random.Random, data: bytes) -> bytes:
    """A number of one, two, four or eight bytes, set or moved a little; half of them among the first bytes."""
    width = 1 << chance.getrandbits(2)
    if len(data) < width:
        return data
    last = len(data) - width
    at = chance.randrange(min(last, 64) + 1) if chance.getrandbits(1) else chance.randrange(last + 1)
    mask = (1 << 8 * width) - 1
    if chance.getrandbits(1):
        value = chance.choice(NUMBERS if chance.getrandbits(1) else LARGE)
    else:
        value = int.from_bytes(data[at : at + width], "little") + chance.choice((-8, -1, 1, 8))
    return data[:at] + (value & mask).to_bytes(width, "little") + data[at + width :]


def replacement(chance: random.Random) -> Any:
    """A value that is probably wrong where it goes."""
    return chance.choice(CONTAINERS)() if chance.randrange(8) == 0 else chance.choice(SCALARS)


def damage_value(chance: random.Random, value: Any, inner: Callable[[random.Random, bytes], bytes]) -> Any:
    """One place in a tree of lists and maps replaced, removed, doubled; `inner` is for bytes met on the way."""
    here = chance.randrange(12)
    if isinstance(value, list) and value and here > 1:
        at = chance.randrange(len(value))
        if here == 2:
            del value[at]
        elif here == 3:
            value.insert(at, value[chance.randrange(len(value))])
        elif here == 4:
            value[at] = replacement(chance)
        else:
            value[at] = damage_value(chance, value[at], inner)
        return value
    if isinstance(value, dict) and value and here > 1:
        key = chance.choice(list(value))
        if here == 2:
            del value[key]
        elif here == 3:
            value[chance.choice((0, 1, 1 << 40, "extra", "level", b"k"))] = replacement(chance)
        elif here == 4:
            value[key] = replacement(chance)
        else:
            value[key] = damage_value(chance, value[key], inner)
        return value
    if isinstance(value, bytes) and here > 3:
        return inner(chance, value)
    if isinstance(value, int) and not isinstance(value, bool) and here > 6:
        return max(min(value + chance.choice((-1, 1, 1 << 32)), (1 << 64) - 1), -(1 << 63))
    return replacement(chance)


def damage_msgpack(chance: random.Random, data: bytes) -> bytes:
    """Well-formed msgpack with something wrong in it; bytes that are no msgpack, or mean no container, as bytes."""
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError):
        return damage_bytes(chance, data)
    if not isinstance(value, list | dict):
        return damage_bytes(chance, data)
    for _ in range(1 + chance.getrandbits(1)):
        value = damage_value(chance, value, damage_msgpack)
    try:
        packed = bytes(msgpack.packb(value))
    except (ValueError, TypeError, OverflowError):
        return damage_bytes(chance, data)
    return packed if len(packed) <= PACKED_BYTES_MAX else packed[:1000]


def damage_json(chance: random.Random, data: bytes) -> bytes:
    """Well-formed JSON with something wrong in it, with numbers that no other format can write."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return damage_bytes(chance, data)
    value = damage_value(chance, value, damage_bytes)
    if chance.randrange(40) == 0:
        return b"[" * 100_000
    try:
        text = json.dumps(value, default=lambda raw: raw.decode("latin-1"), skipkeys=True)
    except RecursionError:
        text = "[" * 1500 + "]" * 1500
    if chance.randrange(20) == 0:
        text = text.replace("1", "1" * chance.choice((20, 400, 5000)), 1)
    return text.encode()


def either(*ways: Mutation) -> Mutation:
    """One of them by turns of chance."""

    def mutate(chance: random.Random, data: bytes) -> bytes:
        return ways[chance.randrange(len(ways))](chance, data)

    return mutate
