"""Tokens, sealed secrets, passwords and roles, without a database."""

import asyncio
import dataclasses
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from strongroom.base.errors import Corrupt, InvalidRequest, Throttled, Unauthenticated
from strongroom.control.access import (
    ACTION_ADMIN,
    ACTIONS_OF,
    POLICY_ACTIONS,
    READ_ACTIONS,
    ROLE_FULL,
    ROLE_NO_POLICIES,
    ROLE_OPERATOR,
    ROLE_READER,
    ROLE_TENANT_ADMIN,
    WRITE_ACTIONS,
    allowed,
)
from strongroom.control.passwords import FAILURES_FREE, LoginBrake, Passwords
from strongroom.control.tokens import TOKEN_CHARS_MAX, Ring, Token

NOW = datetime(2026, 1, 31, tzinfo=UTC)
OLD, NEW = b"o" * 32, b"n" * 32
TOKEN = Token(
    user_id="u" * 32, project_id="p" * 32, methods=("password",), issued_at=NOW, expires_at=NOW + timedelta(hours=1)
)


def test_a_token_comes_back_as_it_was():
    """What was sealed is opened, until the moment it expires."""
    ring = Ring([NEW])
    text = ring.seal_token(TOKEN)
    assert len(text) < 500
    assert ring.open_token(text, NOW) == TOKEN
    assert ring.open_token(text, TOKEN.expires_at - timedelta(microseconds=1)) == TOKEN
    with pytest.raises(Unauthenticated, match="token expires"):
        ring.open_token(text, TOKEN.expires_at)


@given(position=st.integers(0, 10_000), letter=st.sampled_from("Aa0-_="))
def test_a_changed_token_is_refused(position: int, letter: str):
    """No single changed character passes."""
    ring = Ring([NEW])
    text = ring.seal_token(TOKEN)
    position %= len(text)
    changed = text[:position] + letter + text[position + 1 :]
    if changed.rstrip("=") == text.rstrip("="):
        return
    with pytest.raises(Unauthenticated, match="decrypt token fail"):
        ring.open_token(changed, NOW)


@given(st.text(max_size=200))
def test_any_text_is_refused_as_a_token(text: str):
    """Garbage is a 401, never a crash."""
    with pytest.raises(Unauthenticated):
        Ring([NEW]).open_token(text, NOW)


def test_endless_and_foreign_tokens_are_refused():
    """A text longer than any token, and a well-made Fernet token of another key or another content."""
    ring = Ring([NEW])
    for text in (
        "A" * (TOKEN_CHARS_MAX + 1),
        Fernet(Fernet.generate_key()).encrypt(b"x").decode(),
        Ring([OLD]).seal_token(TOKEN),
    ):
        with pytest.raises(Unauthenticated):
            ring.open_token(text, NOW)
    with pytest.raises(Unauthenticated):  # a sealed secret is no token, though of the same ring
        ring.open_token(ring.seal_secret("secret").decode(), NOW)


def test_rotation_keeps_what_the_old_key_sealed():
    """With the new secret first, old tokens and secrets open; without the old one they no longer do."""
    old, both, new = Ring([OLD]), Ring([NEW, OLD]), Ring([NEW])
    token, secret = old.seal_token(TOKEN), old.seal_secret("sk")
    assert both.open_token(token, NOW) == TOKEN
    assert both.open_secret(secret) == "sk"
    assert new.open_secret(both.seal_secret("sk")) == "sk"
    with pytest.raises(Corrupt, match="master key"):
        new.open_secret(secret)
    assert "o" * 8 not in repr(both)


def test_a_token_is_opened_in_microseconds():
    """Opening costs well under a millisecond: it is on the path of every request."""
    ring = Ring([NEW])
    text = ring.seal_token(TOKEN)
    best_s = min(_timed(lambda: ring.open_token(text, NOW)) for _ in range(200))
    assert best_s < 500e-6


def _timed(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- passwords ------------------------------------------------------------------------------------------------------


@pytest.fixture
def passwords():
    made = Passwords()
    yield made
    made.close()


async def test_the_right_password_and_only_it(passwords: Passwords):
    """A hash is argon2id with the parameters of the design, and accepts its own password alone."""
    encoded = await passwords.hash("correct horse \U0001f40e")
    assert encoded.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.verify(encoded, "correct horse \U0001f40e")
    for wrong in ("", "correct horse", "x" * 10_000, "\x00", "\ud800"):
        assert not await passwords.verify(encoded, wrong)


async def test_nobody_has_no_password(passwords: Passwords):
    """A user that does not exist is refused, with about the work of one that does."""
    encoded = await passwords.hash("correct horse")
    for candidate in ("of a user that does not exist", "x"):
        assert not await passwords.verify(None, candidate)
    nobody_s, somebody_s = [], []
    for _ in range(5):
        began = time.perf_counter()
        await passwords.verify(None, "wrong")
        nobody_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        await passwords.verify(encoded, "wrong")
        somebody_s.append(time.perf_counter() - began)
    assert min(nobody_s) > min(somebody_s) / 3


@pytest.mark.parametrize("password", ["", "1234567", "x" * 513])
async def test_passwords_out_of_bounds_are_refused(passwords: Passwords, password: str):
    """Too short or too long a new password is refused with both numbers."""
    with pytest.raises(InvalidRequest, match="8 to 512"):
        await passwords.hash(password)


async def test_too_many_logins_at_once_are_refused(passwords: Passwords):
    """The hashing pool has bounded waiting: a flood is refused, those in work end well."""
    outcomes = await asyncio.gather(*(passwords.verify(None, "x") for _ in range(100)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Throttled)]
    assert 0 < len(refused) < 100
    assert [outcome for outcome in outcomes if outcome not in refused] == [False] * (100 - len(refused))


@dataclasses.dataclass
class StoppedClock:
    seconds: float = 0.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    def monotonic_s(self) -> float:
        return self.seconds


def test_the_brake_grips_and_lets_go():
    """After ten failures in a row a name waits, other names do not; time and a success let it go."""
    clock = StoppedClock()
    brake = LoginBrake(clock)
    for _ in range(FAILURES_FREE):
        brake.require_free("a")
        brake.failed("a")
    with pytest.raises(Throttled, match=r"Try again in 3 s"):
        brake.require_free("a")
    brake.require_free("b")
    clock.seconds = 3.0
    brake.require_free("a")
    brake.failed("a")
    with pytest.raises(Throttled):
        brake.require_free("a")
    brake.succeeded("a")
    brake.require_free("a")


# --- roles ----------------------------------------------------------------------------------------------------------


def test_roles_allow_what_the_contract_says():
    """The role table of the contract: full has all, one lacks policy changes, readers only get and list."""
    everything = READ_ACTIONS | WRITE_ACTIONS | POLICY_ACTIONS
    expected = {
        ROLE_FULL: everything,
        ROLE_TENANT_ADMIN: everything,
        ROLE_NO_POLICIES: everything - POLICY_ACTIONS,
        ROLE_READER: READ_ACTIONS,
        ROLE_OPERATOR: frozenset({ACTION_ADMIN}),
    }
    assert set(expected) == set(ACTIONS_OF)
    for role, actions in expected.items():
        for action in everything | {ACTION_ADMIN}:
            assert allowed(frozenset({role}), action) == (action in actions), (role, action)


def test_nothing_is_allowed_by_no_role():
    """No role, and a role nobody knows, allow nothing; an unknown action is allowed to nobody."""
    assert not allowed(frozenset(), "cbr:vaults:list")
    assert not allowed(frozenset({"root"}), "cbr:vaults:list")
    assert not allowed(frozenset(ACTIONS_OF), "cbr:vaults:unknown")


def test_readers_change_nothing():
    """Every action of a reader is a get, a list, a check or a query."""
    verbs = {action.rsplit(":", 1)[1] for action in READ_ACTIONS}
    assert all(verb.startswith(("get", "list", "check", "query")) for verb in verbs)
