"""An NBD server that does not keep to the rules: one error for everybody who waits, in bounded memory and time."""

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable

import fuzz_mutation as mutation
import pytest
from nbd_world import answering

from strongroom.base.errors import SourceError, SourceGone
from strongroom.base.streams import ExtentKind
from strongroom.sources.machines.nbd import PIECES_MAX, NbdClient

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
SIZE = 1 << 20
HELLO = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
ACK, INFO, META = 1, 3, 4
DONE = 1
REQUEST_MAGIC = struct.pack(">I", 0x25609513)


def option_reply(option: int, kind: int, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(body) if length is None else length) + body


def chunk(cookie: int, kind: int, body: bytes, flags: int = DONE, length: int | None = None) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(body) if length is None else length) + body


def data(cookie: int, offset: int, content: bytes, flags: int = DONE) -> bytes:
    return chunk(cookie, 1, struct.pack(">Q", offset) + content, flags)


def status(cookie: int, pairs: Iterable[tuple[int, int]], context: int = 7) -> bytes:
    return chunk(cookie, 5, struct.pack(">I", context) + b"".join(struct.pack(">II", *pair) for pair in pairs))


def facts(size: int = SIZE, flags: int = 1 | 4 | 64) -> bytes:
    return option_reply(7, INFO, struct.pack(">HQH", 0, size, flags))


BLOCKS = option_reply(7, INFO, struct.pack(">HIII", 3, 1, 4096, 32 << 20))
HANDSHAKE = (
    HELLO
    + option_reply(8, ACK)
    + option_reply(10, META, struct.pack(">I", 7) + b"base:allocation")
    + option_reply(10, ACK)
    + facts()
    + BLOCKS
    + option_reply(7, ACK)
)


def says(opening: bytes, *answers: bytes, hang: bool = False) -> Callable[[socket.socket], None]:
    """A server that says `opening`, and to each request the next answer, whatever was asked.

    hang: it does not hang up after the last one, until the client does.
    """

    def script(sock: socket.socket) -> None:
        sock.sendall(opening)
        heard = b""
        for number, answer in enumerate(answers, 1):
            while heard.count(REQUEST_MAGIC) < number:
                got = sock.recv(1 << 16)
                if not got:
                    return
                heard += got
            sock.sendall(answer)
        if not hang:
            sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass

    return script


def use(sock: socket.socket, timeout_s: float = 30.0) -> tuple[bytes, list[tuple[int, int, ExtentKind]]]:
    """What every client does: open, read, ask for the extents. The cookies are 1 and 2."""
    with NbdClient.over(sock, "disk", timeout_s=timeout_s) as client:
        buffer = bytearray(4096)
        client.read_into(8192, memoryview(buffer))
        return bytes(buffer), [(extent.offset, extent.length, extent.kind) for extent in client.extents()]


CONTENT = bytes(range(256)) * 16
READ = data(1, 8192, CONTENT)
STATUS = status(2, [(4096, 0), (SIZE - 4096, 3)])


def test_the_sound_answer_is_believed() -> None:
    """The script of which the others are wounds."""
    with answering(says(HANDSHAKE, READ, STATUS)) as sock:
        assert use(sock) == (CONTENT, [(0, 4096, ExtentKind.DATA), (4096, SIZE - 4096, ExtentKind.ZERO)])


def test_pieces_may_come_in_any_order_with_holes() -> None:
    """As the protocol allows; each byte lands at its place."""
    hole = chunk(1, 2, struct.pack(">QI", 8192 + 1024, 1024), flags=0)
    last = data(1, 8192 + 2048, b"c" * 2048, flags=0)
    end = chunk(1, 0, b"")
    whole = last + hole + data(1, 8192, b"a" * 1024, flags=0) + end
    with answering(says(HANDSHAKE, whole, STATUS)) as sock:
        assert use(sock)[0] == b"a" * 1024 + bytes(1024) + b"c" * 2048


def test_an_answer_may_tell_less_or_more_than_was_asked() -> None:
    """The rest is asked for again; what is beyond the end is cut off."""
    with answering(says(HANDSHAKE, READ, status(2, [(4096, 0)]), status(3, [(1 << 31, 3)]))) as sock:
        assert use(sock)[1] == [(0, 4096, ExtentKind.DATA), (4096, SIZE - 4096, ExtentKind.ZERO)]


def test_a_server_without_structured_replies_is_read_too() -> None:
    """Old, and honest: everything is data then."""
    old = HELLO + option_reply(8, 0x80000001) + facts() + option_reply(7, ACK)
    with answering(says(old, struct.pack(">IIQ", 0x67446698, 0, 1) + CONTENT)) as sock:
        assert use(sock) == (CONTENT, [(0, SIZE, ExtentKind.DATA)])


def test_an_error_of_one_request_leaves_the_connection_alone() -> None:
    """The sentence says what failed, the operator sees what the server said."""
    refusal = chunk(1, 0x8001, struct.pack(">IH", 5, 6) + b"broken")
    with answering(says(HANDSHAKE, refusal, status(2, [(SIZE, 0)]))) as sock:
        with NbdClient.over(sock, "disk") as client:
            with pytest.raises(SourceError, match="Input/output error") as caught:
                client.read_into(8192, memoryview(bytearray(4096)))
            assert "broken" in caught.value.detail
            assert [extent.kind for extent in client.extents()] == [ExtentKind.DATA]


BROKEN = {
    "another protocol": (b"SSH-2.0-OpenSSH_9.2p1\r\n",),
    "the old style": (b"NBDMAGICIHAVEOPT" + bytes(2),),
    "an option that was not asked for": (HELLO + option_reply(9, ACK),),
    "a huge reply": (HELLO + option_reply(8, ACK, length=0x7FFFFFFF),),
    "endless replies": (HELLO + option_reply(8, INFO, b"x") * 1000,),
    "a negative size": (HANDSHAKE.replace(facts(), facts((1 << 64) - 1)),),
    "no size": (HANDSHAKE.replace(facts(), b""),),
    "a context nobody asked for": (HANDSHAKE.replace(b"base:allocation", b"base:allocatiom"),),
    "impossible blocks": (HANDSHAKE.replace(BLOCKS, option_reply(7, INFO, struct.pack(">HIII", 3, 3, 7, 1))),),
    "a cookie nobody used": (
        HANDSHAKE,
        data(99, 8192, CONTENT),
    ),
    "no magic": (
        HANDSHAKE,
        b"\0" * 64,
    ),
    "a simple reply to a read": (
        HANDSHAKE,
        struct.pack(">IIQ", 0x67446698, 0, 1) + CONTENT,
    ),
    "bytes before the read": (
        HANDSHAKE,
        data(1, 8191, CONTENT),
    ),
    "bytes after the read": (
        HANDSHAKE,
        data(1, 8193, CONTENT),
    ),
    "too many bytes": (
        HANDSHAKE,
        data(1, 8192, CONTENT + b"x"),
    ),
    "too few bytes": (
        HANDSHAKE,
        data(1, 8192, CONTENT[:-1]),
    ),
    "no bytes": (
        HANDSHAKE,
        chunk(1, 0, b""),
    ),
    "bytes twice": (
        HANDSHAKE,
        data(1, 8192, CONTENT[:2048], flags=0) + data(1, 8192 + 1024, CONTENT[:2048]),
    ),
    "a hole over bytes": (
        HANDSHAKE,
        data(1, 8192, CONTENT, flags=0) + chunk(1, 2, struct.pack(">QI", 8192, 4096)),
    ),
    "an endless hole": (
        HANDSHAKE,
        chunk(1, 2, struct.pack(">QI", 8192, 0xFFFFFFFF)),
    ),
    "a chunk without end": (
        HANDSHAKE,
        chunk(1, 1, b"x" * 16, length=0xFFFFFFFF),
    ),
    "a chunk of no known kind": (
        HANDSHAKE,
        chunk(1, 77, b"x" * 16),
    ),
    "an error without text": (
        HANDSHAKE,
        chunk(1, 0x8001, b"x"),
    ),
    "an answer twice": (
        HANDSHAKE,
        READ,
        READ,
    ),
    "a status of another context": (
        HANDSHAKE,
        READ,
        status(2, [(SIZE, 0)], context=8),
    ),
    "a status that says nothing": (
        HANDSHAKE,
        READ,
        status(2, [(0, 0)] * 3),
    ),
    "a status with half a range": (
        HANDSHAKE,
        READ,
        chunk(2, 5, b"x" * 13),
    ),
    "a status without context": (
        HANDSHAKE,
        READ,
        chunk(2, 0, b""),
    ),
    "a status for a read": (
        HANDSHAKE,
        status(1, [(SIZE, 0)]),
    ),
    "bytes for a status": (
        HANDSHAKE,
        READ,
        data(2, 0, CONTENT),
    ),
    "the end in the middle": (
        HANDSHAKE,
        READ[:-100],
    ),
    "the end in the handshake": (HANDSHAKE[:-100],),
}


@pytest.mark.parametrize("answers", BROKEN.values(), ids=BROKEN)
def test_what_breaks_the_rules_is_refused(answers: tuple[bytes, ...]) -> None:
    """SourceError, at once, and never a buffer that is half right."""
    with answering(says(*answers)) as sock, pytest.raises(SourceError):
        use(sock)


def test_a_flood_of_tiny_pieces_ends() -> None:
    """Honest servers need one piece a fragment; the memory for others is bounded."""
    tiny = b"".join(data(1, 8192 + at, b"x", flags=0) for at in range(PIECES_MAX + 1))
    with answering(says(HANDSHAKE, tiny)) as sock, NbdClient.over(sock, "disk") as client:
        with pytest.raises(SourceError) as caught:
            client.read_into(8192, memoryview(bytearray(2 * PIECES_MAX)))
    assert "pieces" in caught.value.detail


@pytest.mark.parametrize(
    "said", [(b"",), (HELLO,), (HANDSHAKE,), (HANDSHAKE, READ[:50])], ids=["nothing", "hello", "open", "half"]
)
def test_a_silent_server_is_given_up(said: tuple[bytes, ...]) -> None:
    """The time-out breaks the connection: SourceError, and the socket is gone."""
    with answering(says(*said, hang=True)) as sock, pytest.raises(SourceError, match="does not answer"):
        use(sock, timeout_s=0.2)


def test_a_server_that_does_not_take_what_is_sent_is_given_up() -> None:
    """A writer whose server reads no more is not held for ever."""
    stop = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.sendall(HANDSHAKE)
        stop.wait(30)

    with answering(script) as sock:
        client = NbdClient.over(sock, "disk", timeout_s=0.2)
        with pytest.raises(SourceError, match="does not answer"):
            for _ in range(64):
                client.write(0, memoryview(bytes(SIZE)))
        client.close()
        stop.set()


def test_closing_wakes_who_waits() -> None:
    """No reader stays behind in a connection that its owner closed."""
    errors: list[SourceError] = []

    def read() -> None:
        try:
            client.read_into(0, memoryview(bytearray(4096)))
        except SourceError as err:
            errors.append(err)

    with answering(says(HANDSHAKE, hang=True)) as sock:
        client = NbdClient.over(sock, "disk")
        reader = threading.Thread(target=read)
        reader.start()
        while not client._pending:
            time.sleep(0)
        client.close()
        reader.join(30)
        assert len(errors) == 1


def fuzz(executions: int) -> int:
    """How many wounded answers were refused. Any other exception, or one that was waited out, is the finding.

    The server hangs up after the wound: what the client then waits for never comes.
    """
    refused = 0
    for number in range(executions):
        chance = random.Random(f"{SEED} {number}")
        wound = mutation.damage_numbers if number % 3 else mutation.damage_bytes
        answers = [HANDSHAKE, READ, STATUS][: 1 + number % 3]
        answers[-1] = wound(chance, answers[-1])
        with answering(says(*answers)) as sock:
            try:
                use(sock)
            except SourceError as err:
                assert "does not answer" not in err.message, f"seed {SEED}, input {number}"
                refused += 1
    return refused


def test_no_wounded_answer_brings_anything_but_the_error() -> None:
    """Seeded damage anywhere in a sound conversation."""
    assert 1000 < fuzz(1500) < 1500


@pytest.mark.long
def test_no_wounded_answer_brings_anything_but_the_error_long() -> None:
    """The same, far more of them."""
    assert 40_000 < fuzz(60_000) < 60_000


def test_the_error_of_a_vanished_server_says_so() -> None:
    """SourceGone: the caller may look whether the machine still runs."""
    with answering(says(HANDSHAKE)) as sock, pytest.raises(SourceGone, match="closed the connection"):
        use(sock)
