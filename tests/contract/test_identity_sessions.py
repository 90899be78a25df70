"""Sessions end when they should, in every process, and not before: revocation, keys of tokens, passwords, temporary
access keys, and what operators change. On a real PostgreSQL, with a clock that stands."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from accounts_world import PASSWORD, World, opened_world, signed

from strongroom.base.errors import (
    AccountNotFound,
    Conflict,
    InvalidRequest,
    Throttled,
    TokenNotFound,
    Unauthenticated,
)
from strongroom.control import account_changes
from strongroom.control.access import ROLE_FULL, ROLE_OPERATOR, ROLE_READER, ROLE_TENANT_ADMIN
from strongroom.control.callers import FRESH_S, IssuedToken, Scope
from strongroom.control.db import Database
from strongroom.control.logins import SOURCE_KEPT, Login
from strongroom.control.passwords import FAILURES_FREE
from strongroom.control.token_keys import KEYS_MAX, REFRESH_S, SETTLED, TOKEN_LIFE_MAX


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with opened_world(database) as opened:
        yield opened


@pytest.fixture
async def other(world: World) -> AsyncIterator[World]:
    """A second process on the same database."""
    async with opened_world(world.database, world.clock) as opened:
        yield opened


async def token_of(world: World, name: str = "admin", password: str | None = None, **more: str) -> IssuedToken:
    return await world.logins.log_in(Login(password=password or world.first.password, user_name=name, **more), None)


async def user_of(world: World, name: str, role: str = ROLE_FULL) -> tuple[str, str]:
    """(user id, project id) of a new user on the first project."""
    made = await world.accounts.create_user(name=name, password=PASSWORD, project_id=world.first.project_id, role=role)
    return made.id, world.first.project_id


# --- revocation -------------------------------------------------------------------------------------------------------


async def test_a_revoked_token_counts_no_more(world: World, other: World):
    """Here at once, in another process within FRESH_S; a second token of the same user goes on."""
    gone, stays = await token_of(world), await token_of(world)
    await other.callers.caller_of_token(gone.text)
    await world.callers.revoke_token(gone.text, stays.caller)
    with pytest.raises(Unauthenticated, match="revoked"):
        await world.callers.caller_of_token(gone.text)
    await other.callers.caller_of_token(gone.text)  # remembered
    world.clock.forward(FRESH_S)
    for process in (world, other):
        with pytest.raises(Unauthenticated, match="revoked"):
            await process.callers.caller_of_token(gone.text)
        with pytest.raises(Unauthenticated, match="revoked"):
            await process.callers.exchange_token(gone.text, None)
        await process.callers.caller_of_token(stays.text)


async def test_the_text_of_a_revoked_token_cannot_be_bent_into_a_valid_one(world: World):
    """Base64 has several texts for the same bytes: each of them is the same revoked token."""
    token = await token_of(world)
    await world.callers.revoke_token(token.text, token.caller)
    for bent in (token.text + "=", token.text.rstrip("="), token.text + "====", token.text[:9] + "\n" + token.text[9:]):
        with pytest.raises(Unauthenticated):
            await world.callers.caller_of_token(bent)


async def test_others_learn_nothing_of_a_token(world: World):
    """Revoking or showing another user's token, an expired one and garbage read alike; an operator may revoke any."""
    await user_of(world, "reader", ROLE_READER)
    reader = await token_of(world, "reader", PASSWORD)
    owner = await token_of(world)
    for text in (owner.text, "garbage", "", "x" * 9000):
        for work in (world.callers.revoke_token, world.callers.inspect_token):
            with pytest.raises(TokenNotFound, match="does not exist, has ended, or is not yours"):
                await work(text, reader.caller)
    await world.callers.caller_of_token(owner.text)
    with pytest.raises(TokenNotFound):
        await world.callers.inspect_token(reader.text, owner.caller)
    await world.callers.revoke_token(reader.text, owner.caller)
    with pytest.raises(Unauthenticated):
        await world.callers.caller_of_token(reader.text)
    with pytest.raises(TokenNotFound):
        await world.callers.revoke_token(reader.text, owner.caller)


async def test_revoked_tokens_are_forgotten_when_they_expired(world: World):
    """The list is as long as the tokens in it live."""
    for _ in range(3):
        token = await token_of(world)
        await world.callers.revoke_token(token.text, token.caller)
    world.clock.forward(3600 + 301)
    token = await token_of(world)
    await world.callers.revoke_token(token.text, token.caller)
    async with world.database.read() as conn:
        rows = await (await conn.execute("SELECT audit_id FROM revoked_tokens")).fetchall()
    assert rows == [(token.audit_id,)]


# --- the keys of tokens -----------------------------------------------------------------------------------------------


async def test_a_new_token_key_logs_nobody_out(world: World, other: World):
    """Tokens of before go on in every process, and so do those of the moments in which one process knows it and the
    other does not; afterwards new tokens are sealed with the new key alone."""
    tokens = [await token_of(process, password=world.first.password) for process in (world, other)]
    world.clock.forward(1)
    assert await world.keys.change(forget_old=False) == 2
    for _ in range(15):
        world.clock.forward(1)
        tokens += [await token_of(process, password=world.first.password) for process in (world, other)]
        for token in tokens:
            for process in (world, other):
                await process.callers.caller_of_token(token.text)
    world.clock.forward(REFRESH_S)
    newest = await token_of(world)
    async with world.database.transaction() as conn:
        await conn.execute("DELETE FROM token_keys WHERE created_at < (SELECT max(created_at) FROM token_keys)")
    world.clock.forward(REFRESH_S)
    await other.callers.caller_of_token(newest.text)
    with pytest.raises(Unauthenticated, match="decrypt token fail"):
        await other.callers.caller_of_token(tokens[0].text)


async def test_an_old_token_key_goes_when_its_last_token_has(world: World):
    """It opens until the longest life of a token is over, and is removed by the change after that."""
    await token_of(world)
    world.clock.forward(1)
    await world.keys.change(forget_old=False)
    world.clock.forward((TOKEN_LIFE_MAX + SETTLED).total_seconds() - 1)
    assert await world.keys.change(forget_old=False) == 3
    world.clock.forward(2)
    assert await world.keys.change(forget_old=False) == 3  # the first went, this one came


async def test_a_stolen_token_key_is_forgotten(world: World, other: World):
    """forget_old voids every token of before in every process within seconds; logging in works at once."""
    stolen = await token_of(world)
    await other.callers.caller_of_token(stolen.text)
    assert await world.keys.change(forget_old=True) == 1
    with pytest.raises(Unauthenticated):
        await world.callers.caller_of_token(stolen.text)
    world.clock.forward(REFRESH_S)
    with pytest.raises(Unauthenticated):
        await other.callers.caller_of_token(stolen.text)
    fresh = await token_of(world)
    await other.callers.caller_of_token(fresh.text)


async def test_token_keys_are_bounded_and_sealed(world: World):
    """Not more than KEYS_MAX in use: each is tried for every token. No key can be read from the rows."""
    await token_of(world)
    for _ in range(KEYS_MAX - 1):
        world.clock.forward(60)
        await world.keys.change(forget_old=False)
    with pytest.raises(Conflict, match="Wait, or log everybody out"):
        await world.keys.change(forget_old=False)
    async with world.database.read() as conn:
        rows = await (await conn.execute("SELECT sealed FROM token_keys")).fetchall()
    assert len(rows) == KEYS_MAX
    assert all(bytes(sealed).startswith(b"gAAAA") for (sealed,) in rows)  # a Fernet token, of the master key's ring


async def test_first_starts_at_once_have_one_token_key(world: World, other: World):
    """Two processes that seal their first token at the same time open each other's."""
    first, second = await asyncio.gather(token_of(world), token_of(other, password=world.first.password))
    await world.callers.caller_of_token(second.text)
    await other.callers.caller_of_token(first.text)


# --- passwords --------------------------------------------------------------------------------------------------------


async def test_a_new_password_ends_every_session(world: World, other: World):
    """The old password and every token of before are void, access keys go on, and the new password works."""
    user_id, project_id = await user_of(world, "user")
    key = await world.accounts.create_access_key(user_id)
    token = await token_of(world, "user", PASSWORD)
    await other.callers.caller_of_token(token.text)
    with pytest.raises(Unauthenticated, match="wrong"):
        await world.logins.change_password(token.caller, "not it", "another horse battery")
    with pytest.raises(InvalidRequest, match="8 to 512"):
        await world.logins.change_password(token.caller, PASSWORD, "short")
    with pytest.raises(InvalidRequest, match="the old one"):
        await world.logins.change_password(token.caller, PASSWORD, PASSWORD)
    await world.callers.caller_of_token(token.text)
    world.clock.forward(1)
    await world.logins.change_password(token.caller, PASSWORD, "another horse battery")
    with pytest.raises(Unauthenticated, match="revoked"):
        await world.callers.caller_of_token(token.text)
    world.clock.forward(FRESH_S)
    with pytest.raises(Unauthenticated, match="revoked"):
        await other.callers.caller_of_token(token.text)
    with pytest.raises(Unauthenticated, match="wrong"):
        await token_of(world, "user", PASSWORD)
    fresh = await token_of(world, "user", "another horse battery")
    await other.callers.caller_of_token(fresh.text)
    await world.callers.caller_of_signature(*signed(world, key.access_key, key.secret_key), project_id)


async def test_guesses_from_elsewhere_do_not_lock_a_tenant_out(world: World):
    """While a user is guessed from many addresses, and from one, the user logs in from where they did before."""
    login = Login(password=world.first.password, user_name="admin")
    wrong = Login(password="wrong", user_name="admin")
    token = await world.logins.log_in(login, None, "192.0.2.1")
    refused = 0
    for number in range(60):
        with pytest.raises((Unauthenticated, Throttled)) as caught:
            await world.logins.log_in(wrong, None, f"198.51.100.{number}")
        refused += caught.type is Throttled
    assert refused == 10
    with pytest.raises(Throttled):
        await world.logins.log_in(login, None, "203.0.113.1")
    await world.logins.log_in(login, None, "192.0.2.1")
    await world.callers.caller_of_token(token.text)
    for _ in range(FAILURES_FREE):  # at the user's own address the brake is the user's own
        with pytest.raises(Unauthenticated):
            await world.logins.log_in(wrong, None, "192.0.2.1")
    with pytest.raises(Throttled):
        await world.logins.log_in(login, None, "192.0.2.1")
    world.clock.forward(SOURCE_KEPT.total_seconds() + 1)
    async with world.database.read() as conn:
        (count,) = await (await conn.execute("SELECT count(*) FROM login_sources")).fetchone()
    assert count == 1


async def test_known_addresses_are_bounded(world: World):
    """Twenty a user, the newest."""
    for number in range(25):
        world.clock.forward(1)
        await world.logins.log_in(Login(password=world.first.password, user_name="admin"), None, f"192.0.2.{number}")
    async with world.database.read() as conn:
        (count,) = await (await conn.execute("SELECT count(*) FROM login_sources")).fetchone()
    assert count == 20


# --- temporary access keys --------------------------------------------------------------------------------------------


async def test_a_temporary_key_counts_with_its_token_and_until_it_ends(world: World):
    """X-Security-Token must be the key's own; an ordinary key comes with none; the key ends by itself."""
    user_id, project_id = await user_of(world, "user")
    key = await world.accounts.create_access_key(user_id, 900)
    plain = await world.accounts.create_access_key(user_id)

    async def call(of, security_token: str | None):
        return await world.callers.caller_of_signature(
            *signed(world, of.access_key, of.secret_key), project_id, security_token
        )

    assert (await call(key, key.security_token)).roles == {ROLE_FULL}
    assert (await call(plain, None)).roles == {ROLE_FULL}
    assert (await call(plain, "")).roles == {ROLE_FULL}
    for of, security_token in ((key, None), (key, ""), (key, "x"), (key, "\ud800"), (plain, key.security_token)):
        with pytest.raises(Unauthenticated, match="verify aksk signature fail"):
            await call(of, security_token)
    world.clock.forward(900)
    with pytest.raises(Unauthenticated, match="expired"):
        await call(key, key.security_token)
    for seconds in (0, 899, 86401, -1):
        with pytest.raises(InvalidRequest, match="duration_seconds"):
            await world.accounts.create_access_key(user_id, seconds)
    world.clock.forward(1)
    await world.accounts.create_access_key(user_id, 900)  # sweeps what ended
    assert key.access_key not in {row.access_key for row in await world.accounts.access_keys()}
    assert key.security_token not in repr(key)


# --- operators --------------------------------------------------------------------------------------------------------


async def test_operators_turn_users_and_keys_off(world: World):
    """A disabled user, a forced log-out, a disabled key and a deleted user stop within FRESH_S."""
    database, now = world.database, world.clock.now
    user_id, project_id = await user_of(world, "user")
    key = await world.accounts.create_access_key(user_id)
    token = (await token_of(world, "user", PASSWORD)).text

    async def holds() -> tuple[bool, bool]:
        world.clock.forward(FRESH_S)
        found = []
        for call in (
            lambda: world.callers.caller_of_token(token),
            lambda: world.callers.caller_of_signature(*signed(world, key.access_key, key.secret_key), project_id),
        ):
            try:
                await call()
                found.append(True)
            except Unauthenticated:
                found.append(False)
        return found[0], found[1]

    assert await holds() == (True, True)
    await account_changes.change_user(database, world.passwords, user_id, now(), enabled=False)
    assert await holds() == (False, False)
    await account_changes.change_user(database, world.passwords, user_id, now(), enabled=True)
    assert await holds() == (True, True)
    await account_changes.change_user(database, world.passwords, user_id, now(), log_out=True)
    assert await holds() == (False, True)
    await account_changes.set_key_enabled(database, key.access_key, enabled=False)
    assert await holds() == (False, False)
    await account_changes.delete_user(database, user_id)
    assert await holds() == (False, False)
    for user in (user_id, "x", "\x00", "f" * 32):
        with pytest.raises(AccountNotFound):
            await account_changes.delete_user(database, user)
        with pytest.raises(AccountNotFound):
            await account_changes.roles_of(database, user)
    for access_key in (key.access_key, "\x00", ""):
        with pytest.raises(AccountNotFound):
            await account_changes.set_key_enabled(database, access_key, enabled=True)


async def test_roles_are_given_and_taken(world: World):
    """A role counts on its project alone, twice given is once, and a taken one is gone within FRESH_S."""
    database = world.database
    user_id, _ = await user_of(world, "user", ROLE_READER)
    second = await world.accounts.create_project("second")
    await account_changes.give_role(database, user_id, ROLE_FULL, second.id)
    await account_changes.give_role(database, user_id, ROLE_FULL, second.id)
    login = Login(password=PASSWORD, user_name="user")
    token = await world.logins.log_in(login, Scope(project_id=second.id))
    assert token.caller.roles == {ROLE_FULL}
    shown = [(r.project_name, r.role) for r in await account_changes.roles_of(database, user_id)]
    assert shown == [("local", ROLE_READER), ("second", ROLE_FULL)]
    await account_changes.take_role(database, user_id, ROLE_FULL, second.id)
    world.clock.forward(FRESH_S)
    assert (await world.callers.caller_of_token(token.text)).project_id == ""
    for role, project in ((ROLE_FULL, second.id), (ROLE_READER, second.id), (ROLE_READER, "\x00"), (ROLE_OPERATOR, "")):
        with pytest.raises(AccountNotFound):
            await account_changes.take_role(database, user_id, role, project)
    with pytest.raises(InvalidRequest, match="no role"):
        await account_changes.give_role(database, user_id, "root", second.id)
    with pytest.raises(AccountNotFound):
        await account_changes.give_role(database, user_id, ROLE_FULL, "f" * 32)


async def test_an_operator_is_always_left(world: World):
    """The last one cannot be turned off, deleted or stripped, not even by two changes at once that each leave one."""
    database, now = world.database, world.clock.now
    (admin,) = await world.accounts.users()
    for work in (
        account_changes.change_user(database, world.passwords, admin.id, now(), enabled=False),
        account_changes.delete_user(database, admin.id),
        account_changes.take_role(database, admin.id, ROLE_OPERATOR, ""),
    ):
        with pytest.raises(Conflict, match="last operator"):
            await work
    assert (await token_of(world)).caller.roles == {ROLE_TENANT_ADMIN, ROLE_OPERATOR}
    second = await world.accounts.create_user(name="second", password=PASSWORD, project_id="", role=ROLE_OPERATOR)
    outcomes = await asyncio.gather(
        account_changes.delete_user(database, second.id),
        account_changes.take_role(database, admin.id, ROLE_OPERATOR, ""),
        return_exceptions=True,
    )
    assert sorted(type(o) for o in outcomes if o is not None) == [Conflict]


async def test_domains_keep_apart(world: World):
    """A user of another domain works in its projects alone, may be called as one of `default`, and is no operator."""
    database = world.database
    domain = await account_changes.create_domain(database, "tenant.example", world.clock.now())
    project = await world.accounts.create_project("local", domain_id=domain.id)
    made = await world.accounts.create_user(name="admin", password=PASSWORD, project_id=project.id, role=ROLE_FULL)
    assert made.domain_id == domain.id
    caller = (await token_of(world, "admin", PASSWORD, domain_name="tenant.example")).caller
    assert (caller.project_id, caller.domain_id, caller.roles) == (project.id, domain.id, {ROLE_FULL})
    with pytest.raises(InvalidRequest, match="another domain"):
        await account_changes.give_role(database, made.id, ROLE_FULL, world.first.project_id)
    with pytest.raises(InvalidRequest, match="domain default"):
        await account_changes.give_role(database, made.id, ROLE_OPERATOR, "")
    with pytest.raises(Conflict, match="already"):
        await account_changes.create_domain(database, "tenant.example", world.clock.now())
    for domain_id in ("f" * 32, "x", "\x00"):
        with pytest.raises(AccountNotFound):
            await world.accounts.create_project("p", domain_id=domain_id)
    assert [d.name for d in await account_changes.domains(database)] == ["default", "tenant.example"]


async def test_a_disabled_project_is_nobodys(world: World):
    """Tokens of it are scoped to nothing, and none is issued for it, until it is enabled again."""
    token = await token_of(world)
    await account_changes.set_project_enabled(world.database, world.first.project_id, enabled=False)
    world.clock.forward(timedelta(seconds=FRESH_S).total_seconds())
    assert (await world.callers.caller_of_token(token.text)).project_id == ""
    with pytest.raises(Unauthenticated, match="no role on the project"):
        await world.logins.log_in(
            Login(password=world.first.password, user_name="admin"), Scope(project_id=world.first.project_id)
        )
    await account_changes.set_project_enabled(world.database, world.first.project_id, enabled=True)
    world.clock.forward(FRESH_S)
    assert (await world.callers.caller_of_token(token.text)).project_id == world.first.project_id
