"""Tokens, sealed secrets, passwords and roles, without a database."""

import asyncio
import dataclasses
import json
import time
from datetime import UTC, datetime, timedelta
from importlib import resources

import pytest
from cryptography.fernet import Fernet
from every_operation import every_operation
from hypothesis import given
from hypothesis import strategies as st

from strongroom.api.operation import AUTHENTICATED, PUBLIC, REGION
from strongroom.base.errors import Corrupt, InvalidRequest, Throttled, Unauthenticated
from strongroom.control.access import (
    ACTION_ADMIN,
    ACTION_AUDIT,
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
from strongroom.control.tokens import TOKEN_CHARS_MAX, Ring, Token, TokenRing

CONTRACT = json.loads(resources.files("strongroom.api").joinpath("openapi.json").read_text())
# contract/identity.md section 6 where nothing is published: its suggestions.
SUGGESTED = {
    "list_api_versions": PUBLIC, "show_api_version": PUBLIC, "show_api_version_v3": PUBLIC,
    "list_domain_projects": AUTHENTICATED, "show_domain": AUTHENTICATED, "list_projects": AUTHENTICATED,
    "show_migrate_status": "cbr:vaults:get", "migrate_domain": "cbr:vaults:update",
    "import_backup": "cbr:backups:sync", "update_backup": "cbr:backups:update",
    "list_features": "cbr:features:list", "show_feature": "cbr:features:get",
    "import_checkpoint": "cbr:vaults:sync", "show_checkpoint": "cbr:vaults:get",
    "change_order": "cbr:vaults:update", "update_order": "cbr:vaults:update",
    "list_organization_policies": "cbr:policies:list", "create_organization_policy": "cbr:policies:create",
    "delete_organization_policy": "cbr:policies:delete", "show_organization_policy": "cbr:policies:get",
    "update_organization_policy": "cbr:policies:update", "list_organization_policy_detail": "cbr:policies:get",
    "show_storage_usage": "cbr:backups:list", "batch_update_vault": "cbr:vaults:update",
    "change_vault_charge_mode": "cbr:vaults:update", "list_external_vault": "cbr:vaults:list",
    "create_post_paid_vault": "cbr:vaults:create", "show_summary": "cbr:vaults:list",
    "set_vault_resource": "cbr:vaults:update", "update_expiration_time": "cbr:vaults:update",
}  # fmt: skip
READS_BY_POST = frozenset({"show_vault_resource_instances", "check_agent"})

NOW = datetime(2026, 1, 31, tzinfo=UTC)
OLD, NEW = b"o" * 32, b"n" * 32
TOKEN = Token(
    user_id="u" * 32, project_id="p" * 32, methods=("password",), issued_at=NOW, expires_at=NOW + timedelta(hours=1)
)


def test_a_token_comes_back_as_it_was():
    """What was sealed is opened, until the moment it expires."""
    ring = TokenRing([NEW])
    text = ring.seal(TOKEN)
    assert len(text) < 500
    assert ring.open(text, NOW) == TOKEN
    assert ring.open(text, TOKEN.expires_at - timedelta(microseconds=1)) == TOKEN
    with pytest.raises(Unauthenticated, match="token expires"):
        ring.open(text, TOKEN.expires_at)


@given(position=st.integers(0, 10_000), letter=st.sampled_from("Aa0-_="))
def test_a_changed_token_is_refused(position: int, letter: str):
    """No single changed character passes."""
    ring = TokenRing([NEW])
    text = ring.seal(TOKEN)
    position %= len(text)
    changed = text[:position] + letter + text[position + 1 :]
    if changed.rstrip("=") == text.rstrip("="):
        return
    with pytest.raises(Unauthenticated, match="decrypt token fail"):
        ring.open(changed, NOW)


@given(st.text(max_size=200))
def test_any_text_is_refused_as_a_token(text: str):
    """Garbage is a 401, never a crash."""
    with pytest.raises(Unauthenticated):
        TokenRing([NEW]).open(text, NOW)


def test_endless_and_foreign_tokens_are_refused():
    """A text longer than any token, and a well-made Fernet token of another key or another content."""
    ring = TokenRing([NEW])
    for text in (
        "A" * (TOKEN_CHARS_MAX + 1),
        Fernet(Fernet.generate_key()).encrypt(b"x").decode(),
        TokenRing([OLD]).seal(TOKEN),
    ):
        with pytest.raises(Unauthenticated):
            ring.open(text, NOW)
    with pytest.raises(Unauthenticated):  # a sealed secret is no token, though of the same master key
        TokenRing([Ring([NEW]).first_token_key]).open(Ring([NEW]).seal_secret("secret").decode(), NOW)


def test_rotation_keeps_what_the_old_key_sealed():
    """With the new secret first, old tokens and secrets open; without the old one they no longer do."""
    assert TokenRing([NEW, OLD]).open(TokenRing([OLD]).seal(TOKEN), NOW) == TOKEN
    old, both, new = Ring([OLD]), Ring([NEW, OLD]), Ring([NEW])
    secret = old.seal_secret("sk")
    assert both.open_secret(secret) == "sk"
    assert new.open_secret(both.seal_secret("sk")) == "sk"
    with pytest.raises(Corrupt, match="master key"):
        new.open_secret(secret)
    assert "o" * 8 not in repr(both)


def test_a_token_is_opened_in_microseconds():
    """Opening costs well under a millisecond: it is on the path of every request."""
    ring = TokenRing([NEW])
    text = ring.seal(TOKEN)
    best_s = min(_timed(lambda: ring.open(text, NOW)) for _ in range(200))
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
        brake.require_free("a", "here", known=False)
        brake.failed("a", "here")
    with pytest.raises(Throttled, match=r"Try again in 3 s"):
        brake.require_free("a", "here", known=True)
    brake.require_free("b", "here", known=False)
    brake.require_free("a", "there", known=False)
    clock.seconds = 3.0
    brake.require_free("a", "here", known=False)
    brake.failed("a", "here")
    with pytest.raises(Throttled):
        brake.require_free("a", "here", known=False)
    brake.succeeded("a", "here")
    brake.require_free("a", "here", known=False)


def test_guesses_from_elsewhere_lock_nobody_out():
    """A user who is guessed from a thousand addresses logs in where they did before; strangers wait, and are let in
    again once the guessing ends."""
    clock = StoppedClock()
    brake = LoginBrake(clock)
    refused = 0
    for number in range(1000):
        try:
            brake.require_free("owner", f"net-{number}", known=False)
        except Throttled:
            refused += 1
        else:
            brake.failed("owner", f"net-{number}")
    assert refused == 1000 - 50
    brake.require_free("owner", "home", known=True)
    with pytest.raises(Throttled):
        brake.require_free("owner", "a new place", known=False)
    clock.seconds = 3.0
    brake.require_free("owner", "a new place", known=False)


def test_one_address_cannot_try_every_name():
    """Two hundred wrong names from one address, then one a second; others go on, and who is known there too."""
    clock = StoppedClock()
    brake = LoginBrake(clock)
    for number in range(200):
        brake.require_free(f"name-{number}", "here", known=False)
        brake.failed(f"name-{number}", "here")
    with pytest.raises(Throttled, match="from this address"):
        brake.require_free("another", "here", known=False)
    brake.require_free("another", "there", known=False)
    brake.require_free("owner", "here", known=True)


def test_the_brake_remembers_a_bounded_number_of_names():
    """A flood of made-up names is forgotten again, the oldest first."""
    brake = LoginBrake(StoppedClock())
    for number in range(30_000):
        brake.failed(f"name-{number}", f"net-{number}")
    assert max(len(memory) for memory in brake._levels.values()) == 10_000


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


def test_the_table_of_operations_has_the_actions_of_the_contract():
    """Each operation of the published API asks for the action that openapi.json says, and each row of ours for one
    that somebody may."""
    rows = {(o.method, o.path): o for o in every_operation()}
    published = {
        (method.upper(), path): made
        for path, methods in CONTRACT["paths"].items()
        for method, made in methods.items()
        if "operationId" in made
    }
    known = READ_ACTIONS | WRITE_ACTIONS | POLICY_ACTIONS
    known |= {ACTION_ADMIN, ACTION_AUDIT, PUBLIC, AUTHENTICATED, REGION}
    compared = 0
    for place, row in rows.items():
        assert row.action in known, row.name
        made = published.get(place)
        if made is None:
            assert place[1].startswith(
                ("/ext/v1/", "/v3/auth/", "/v3/projects", "/v3/users/", "/healthz", "/readyz", "/metrics")
            ), place
            continue
        assert row.name == made["operationId"]
        expected = made.get("x-iam-action") or SUGGESTED.get(row.name)
        assert expected is not None, f"{row.name}: identity.md suggests an action; write it into SUGGESTED"
        assert row.action == expected, row.name
        compared += 1
    assert compared > 40
    assert {o.action for o in rows.values()} <= known


def test_reading_methods_need_reading_actions():
    """A GET of a tenant asks for an action that readers have, but for contents; what changes asks for one they lack."""
    for row in every_operation():
        if row.action in (PUBLIC, AUTHENTICATED, ACTION_ADMIN, REGION) or row.name in READS_BY_POST:
            continue
        if row.name in ("download_entry", "list_audit"):
            assert row.action not in READ_ACTIONS  # the content of files, and who did what, is more than names
        else:
            assert (row.action in READ_ACTIONS) == (row.method == "GET"), row.name
