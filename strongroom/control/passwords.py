"""Passwords: argon2id in a few threads of its own, and a brake on guessing.

One hash takes about 20 ms of a core and 19 MiB (the OWASP parameters of the design), so both threads and waiting logins
are bounded: more of them are refused, not queued.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from strongroom.base.clock import Clock
from strongroom.base.errors import InvalidRequest, Throttled, Unavailable

Result = TypeVar("Result")

PASSWORD_CHARS_MIN = 8
PASSWORD_CHARS_MAX = 512  # argon2 takes any length; a request body is no place for a book

_THREADS = 2
_WAITING_MAX = 32  # logins in work or waiting: under a second of waiting on one core

FAILURES_FREE = 10  # of a user from one address, in a row, before the brake grips
_NAMES_MAX = 10_000  # remembered of each kind; the least recently used is forgotten first


class Passwords:
    """Hashes and checks in threads; `close` ends them."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="passwords")
        self._waiting = 0
        self._nobody = self._hasher.hash("of a user that does not exist")

    async def hash(self, password: str) -> str:
        """The encoded argon2id hash. Raises InvalidRequest for a password too short or too long."""
        if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
            raise InvalidRequest(
                reason=f"A password has {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters. Choose another one."
            )
        return await self._run(self._hasher.hash, _bytes(password))

    async def verify(self, encoded: str | None, password: str) -> bool:
        """Whether the password is the one of the hash. None (no such user) takes as long and is False."""
        if len(password) > PASSWORD_CHARS_MAX:
            return False
        return await self._run(self._matches, encoded if encoded is not None else self._nobody, _bytes(password)) and (
            encoded is not None
        )

    async def _run(self, work: Callable[..., Result], *arguments: str | bytes) -> Result:
        if self._waiting >= _WAITING_MAX:
            raise Throttled(reason="Too many logins at once. Try again in a second.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        finally:
            self._waiting -= 1

    def _matches(self, encoded: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(encoded, password)
        except VerifyMismatchError:
            return False
        except (VerificationError, InvalidHashError) as err:
            raise Unavailable(reason="The account cannot be checked. Tell the operator.", detail=str(err)) from err

    def close(self) -> None:
        """Wait for running hashes and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")  # JSON can carry half a surrogate pair; it is a wrong password


@dataclass(frozen=True, kw_only=True)
class _Level:
    """A leaky bucket: `free` failures at once, and one more every `forgiven_s` seconds, for ever."""

    free: int
    forgiven_s: float


_PAIR = _Level(free=FAILURES_FREE, forgiven_s=3.0)  # of a user, from one address: 20 guesses a minute
_USER = _Level(free=50, forgiven_s=3.0)  # of a user, from all addresses the user never logged in from
_SOURCE = _Level(free=200, forgiven_s=1.0)  # from one address, whatever names it tries


class LoginBrake:
    """Counts failed logins in this process: right passwords wait as well. For one task at a time (an event loop).

    Guesses from elsewhere lock nobody out: who comes from an address that the user logged in from before (`known`) is
    braked by the failures from that address alone. Tokens and access keys are never braked.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._levels: dict[_Level, OrderedDict[tuple[str, str], tuple[float, float]]] = {
            level: OrderedDict() for level in (_PAIR, _USER, _SOURCE)
        }  # name -> (failures, when counted)

    def require_free(self, user: str, source: str, *, known: bool) -> None:
        """Raises Throttled while there are too many failures behind this login."""
        for level, name in _names(user, source):
            failures = self._failures(level, name)
            if failures >= level.free and (level is _PAIR or not known):
                wait_s = max(1, round((failures - level.free + 1) * level.forgiven_s))
                whose = "from this address" if level is _SOURCE else "of this user"
                raise Throttled(reason=f"Too many failed logins {whose}. Try again in {wait_s} s.")

    def failed(self, user: str, source: str) -> None:
        """Count one failure."""
        for level, name in _names(user, source):
            memory = self._levels[level]
            memory[name] = (self._failures(level, name) + 1, self._clock.monotonic_s())
            memory.move_to_end(name)
            if len(memory) > _NAMES_MAX:
                memory.popitem(last=False)

    def succeeded(self, user: str, source: str) -> None:
        """Forget the failures of this user from there: it was the owner."""
        self._levels[_PAIR].pop((user, source), None)

    def _failures(self, level: _Level, name: tuple[str, str]) -> float:
        failures, counted_at_s = self._levels[level].get(name, (0.0, 0.0))
        return max(0.0, failures - (self._clock.monotonic_s() - counted_at_s) / level.forgiven_s)


def _names(user: str, source: str) -> tuple[tuple[_Level, tuple[str, str]], ...]:
    return (_PAIR, (user, source)), (_USER, (user, "")), (_SOURCE, ("", source))
