"""Passwords: argon2id in a few threads of its own, and a brake on guessing.

One hash takes about 20 ms of a core and 19 MiB (the OWASP parameters of the design), so both threads and waiting logins
are bounded: more of them are refused, not queued.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

FAILURES_FREE = 10  # in a row, before the brake grips
_FAILURE_FORGIVEN_S = 3.0  # one failure is forgotten every so many seconds: 20 guesses a minute, for ever
_NAMES_MAX = 10_000  # names remembered; the least recently used is forgotten first


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


class LoginBrake:
    """Counts failed logins by name, in this process: a leaky bucket each. For one task at a time (an event loop)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> (failures, when counted)

    def require_free(self, name: str) -> None:
        """Raises Throttled while the name has too many failures behind it: right passwords wait as well."""
        level = self._level(name)
        if level >= FAILURES_FREE:
            wait_s = max(1, round((level - FAILURES_FREE + 1) * _FAILURE_FORGIVEN_S))
            raise Throttled(reason=f"Too many failed logins of this user. Try again in {wait_s} s.")

    def failed(self, name: str) -> None:
        """Count one failure."""
        self._levels[name] = (self._level(name) + 1, self._clock.monotonic_s())
        self._levels.move_to_end(name)
        if len(self._levels) > _NAMES_MAX:
            self._levels.popitem(last=False)

    def succeeded(self, name: str) -> None:
        """Forget the failures: it was its owner."""
        self._levels.pop(name, None)

    def _level(self, name: str) -> float:
        failures, counted_at_s = self._levels.get(name, (0.0, 0.0))
        return max(0.0, failures - (self._clock.monotonic_s() - counted_at_s) / _FAILURE_FORGIVEN_S)
