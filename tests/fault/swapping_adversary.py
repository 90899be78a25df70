"""A program that makes folders into symbolic links and back, as fast as it can, wherever a restore may be writing.

    stdin   a line with a folder: attack it      an empty line: stop, and tell on stdout how many swaps were made
    folder  FOLDER/target is restored into, FOLDER/outside is where every link leads

Each swap is one atomic exchange, so there is never a moment without the name.
"""

import ctypes
import os
import select

RENAME_EXCHANGE = 2
AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: bytes, two: bytes) -> bool:
    return libc.renameat2(AT_FDCWD, one, AT_FDCWD, two, RENAME_EXCHANGE) == 0


def candidates(base: bytes) -> list[bytes]:
    """Every folder of the restore, in its staging place and in its live one; the places themselves; the root."""
    root = base + b"/target"
    stage = root + b"/.strongroom-t1"
    inner = [b"d%d" % number for number in range(4)] + [b"d%d/e" % number for number in range(4)]
    places = [place + b"/" + name for name in inner for place in (root, stage + b"/new", stage + b"/old")]
    return [*places, stage + b"/new", stage + b"/old", stage, root]


def attack(base: bytes) -> int:
    swaps = 0
    links = []
    for number, place in enumerate(candidates(base)):
        link = base + b"/link-%d" % number
        os.symlink(base + b"/outside", link)
        links.append((link, place))
    while True:
        for link, place in links:
            if exchange(link, place):
                swaps += 1
                exchange(link, place)
        if select.select([0], [], [], 0)[0]:
            return swaps


def read_line() -> bytes:
    """From stdin, not a byte more: what follows is waited for with select."""
    line = b""
    while (piece := os.read(0, 1)) not in (b"", b"\n"):
        line += piece
    return line


if __name__ == "__main__":
    while line := read_line():
        count = attack(line)
        read_line()
        print(count, flush=True)
