"""Accounts and callers on a real PostgreSQL: first start, logins, scopes, keys, replays, and what stops them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from accounts_world import PASSWORD, StoppedClock, World, opened_world, signed

from strongroom.base.errors import AccountNotFound, Conflict, InvalidRequest, Throttled, Unauthenticated
from strongroom.control.access import ROLE_FULL, ROLE_OPERATOR, ROLE_READER, ROLE_TENANT_ADMIN
from strongroom.control.accounts import Accounts, FirstAccount
from strongroom.control.callers import FRESH_S, Callers, Scope
from strongroom.control.db import Database
from strongroom.control.logins import Login
from strongroom.control.passwords import FAILURES_FREE, Passwords
from strongroom.control.token_keys import TokenKeys
from strongroom.control.tokens import Ring


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with opened_world(database) as opened:
        yield opened


async def test_the_first_start_happens_once(world: World):
    """The first start makes domain, project, admin and key; a second one, or two at once, make nothing more."""
    outcomes = await asyncio.gather(*(world.accounts.bootstrap("other", pytest.fail) for _ in range(3)))
    assert outcomes == [False] * 3
    assert [project.name for project in await world.accounts.projects()] == ["local"]
    assert [user.name for user in await world.accounts.users()] == ["admin"]
    assert (world.first.domain_name, world.first.project_name, world.first.username) == ("default", "local", "admin")
    assert world.first.password not in repr(world.first) and world.first.secret_key not in repr(world.first)


async def test_two_first_starts_at_once_make_one_account(database: Database):
    """Of several processes that start first at the same time, one makes the accounts."""
    passwords = Passwords()
    accounts = Accounts(database=database, ring=Ring([b"m" * 32]), passwords=passwords, clock=StoppedClock())
    saved: list[FirstAccount] = []
    outcomes = await asyncio.gather(*(accounts.bootstrap("local", saved.append) for _ in range(4)))
    assert sorted(outcomes) == [False, False, False, True]
    assert len(saved) == 1
    passwords.close()


async def test_credentials_that_could_not_be_saved_are_nobodys(database: Database):
    """When saving the credentials fails, no account exists, and the next start makes one."""
    passwords = Passwords()
    accounts = Accounts(database=database, ring=Ring([b"m" * 32]), passwords=passwords, clock=StoppedClock())

    def full(_: FirstAccount) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await accounts.bootstrap("local", full)
    assert await accounts.users() == []
    assert await accounts.bootstrap("local", lambda _: None)
    passwords.close()


async def test_secrets_are_sealed_in_the_database(world: World):
    """Neither the password nor the secret key can be read from the rows."""
    async with world.database.read() as conn:
        rows = await (
            await conn.execute(
                "SELECT u.password_hash, k.secret_sealed FROM users u JOIN access_keys k ON k.user_id = u.id"
            )
        ).fetchall()
    text = repr(rows)
    assert world.first.password not in text
    assert world.first.secret_key not in text


LOGINS = [
    {"user_name": "admin"},
    {"user_name": "admin", "domain_id": "default"},
    {"user_name": "admin", "domain_name": "default"},
]


@pytest.mark.parametrize("who", LOGINS, ids=str)
async def test_a_login_by_name(world: World, who: dict[str, str]):
    """The admin logs in by name, with the domain by id, by name or not at all, and gets the only project."""
    token = await world.logins.log_in(Login(password=world.first.password, **who), None)
    assert token.caller.project_id == world.first.project_id
    assert token.caller.roles == {ROLE_TENANT_ADMIN, ROLE_OPERATOR}
    assert token.expires_at - token.issued_at == timedelta(hours=1)
    assert await world.callers.caller_of_token(token.text) == token.caller
    again = await world.logins.log_in(Login(password=world.first.password, user_id=token.caller.user_id), None)
    assert again.caller == token.caller


@pytest.mark.parametrize(
    "who",
    [
        {"user_name": "admin"},
        {"user_name": "nobody"},
        {"user_name": "admin", "domain_name": "other"},
        {"user_name": "admin\x00"},
        {"user_name": "\ud800"},
        {"user_id": "x" * 100_000},
        {"user_name": None},
    ],
    ids=lambda who: repr(who)[:40],
)
async def test_a_wrong_login_reads_alike(world: World, who: dict[str, str]):
    """A wrong password, an unknown user or domain, and odd texts get one and the same sentence."""
    with pytest.raises(Unauthenticated, match="the user name or the password is wrong"):
        await world.logins.log_in(Login(password="wrong", **who), None)


async def test_scopes(world: World):
    """A scope by id or name gives that project, an empty one none, and a foreign or unknown one is refused."""
    login = Login(password=world.first.password, user_name="admin")
    project_id = world.first.project_id
    other = await world.accounts.create_project("other")
    for scope in (
        Scope(project_id=project_id),
        Scope(project_name="local"),
        Scope(project_name="local", domain_name="default"),
        Scope(project_name="local", domain_id="default"),
    ):
        assert (await world.logins.log_in(login, scope)).caller.project_id == project_id
    for scope in (Scope(), Scope(domain_id="default")):
        unscoped = (await world.logins.log_in(login, scope)).caller
        assert (unscoped.project_id, unscoped.roles) == ("", {ROLE_OPERATOR})
    for scope in (
        Scope(project_id=other.id),
        Scope(project_name="other"),
        Scope(project_name="local", domain_name="elsewhere"),
        Scope(project_id="\x00"),
    ):
        with pytest.raises(Unauthenticated, match="no role on the project"):
            await world.logins.log_in(login, scope)


async def test_a_token_for_a_token(world: World):
    """A token buys one of another scope that lives no longer, and never one of a foreign project."""
    token = await world.logins.log_in(Login(password=world.first.password, user_name="admin"), None)
    world.clock.forward(60)
    unscoped = await world.callers.exchange_token(token.text, Scope())
    assert unscoped.expires_at == token.expires_at
    assert unscoped.methods == ("password", "token")
    assert (await world.callers.inspect_token(unscoped.text, unscoped.caller)).caller.project_id == ""
    other = await world.accounts.create_project("other")
    with pytest.raises(Unauthenticated):
        await world.callers.exchange_token(unscoped.text, Scope(project_id=other.id))
    world.clock.forward(3600)
    with pytest.raises(Unauthenticated, match="token expires"):
        await world.callers.exchange_token(token.text, None)


async def test_a_new_user_has_what_was_given(world: World):
    """A reader of one project has that role there, no operator's role, and nothing elsewhere."""
    project = await world.accounts.create_project("tenant", "of the test")
    user = await world.accounts.create_user(name="reader", password=PASSWORD, project_id=project.id, role=ROLE_READER)
    caller = (await world.logins.log_in(Login(password=PASSWORD, user_name="reader"), None)).caller
    assert (caller.user_id, caller.project_name, caller.roles) == (user.id, "tenant", {ROLE_READER})
    key = await world.accounts.create_access_key(user.id)
    here = await world.callers.caller_of_signature(*signed(world, key.access_key, key.secret_key), project.id)
    assert here.roles == {ROLE_READER}
    for elsewhere in (world.first.project_id, "", "x", "\x00", "f" * 32):
        caller = await world.callers.caller_of_signature(*signed(world, key.access_key, key.secret_key), elsewhere)
        assert (caller.project_id, caller.roles) == ("", frozenset())
    assert await world.accounts.projects_of(user.id) == [project]
    assert await world.accounts.projects_of(user.id, "tenant") == [project]
    for name in ("local", "\x00", ""):
        assert await world.accounts.projects_of(user.id, name) == []
    assert [domain.name for domain in await world.accounts.domains_of(user.id)] == ["default"]


async def test_an_operator_has_no_tenants_data(world: World):
    """The role admin is given without a project: it holds unscoped and gives no project."""
    await world.accounts.create_user(name="operator", password=PASSWORD, project_id="", role=ROLE_OPERATOR)
    caller = (await world.logins.log_in(Login(password=PASSWORD, user_name="operator"), None)).caller
    assert (caller.project_id, caller.roles) == ("", {ROLE_OPERATOR})


async def test_the_operators_role_counts_in_the_default_domain_alone(world: World):
    """A row that gives `admin` on a project, or to a user of another domain, makes nobody an operator."""
    project = await world.accounts.create_project("tenant")
    user = await world.accounts.create_user(name="u", password=PASSWORD, project_id=project.id, role=ROLE_FULL)
    async with world.database.transaction() as conn:
        await conn.execute(
            "INSERT INTO role_assignments (user_id, project_id, role) VALUES (%s, %s, 'admin')", (user.id, project.id)
        )
        await conn.execute("INSERT INTO domains (id, name, created_at) VALUES (%s, 'foreign', now())", ("f" * 32,))
        await conn.execute(
            "INSERT INTO users (id, domain_id, name, password_hash, created_at) "
            "SELECT %s, %s, 'u', password_hash, now() "
            "FROM users WHERE id = %s",
            ("e" * 32, "f" * 32, user.id),
        )
        await conn.execute("INSERT INTO role_assignments (user_id, role) VALUES (%s, 'admin')", ("e" * 32,))
    assert (await world.logins.log_in(Login(password=PASSWORD, user_name="u"), None)).caller.roles == {ROLE_FULL}
    foreign = await world.logins.log_in(Login(password=PASSWORD, user_name="u", domain_name="foreign"), None)
    assert foreign.caller.roles == frozenset()


async def test_wrong_accounts_are_refused(world: World):
    """Taken names, unknown roles, projects and users, and names out of bounds are refused and leave no row."""
    project = await world.accounts.create_project("tenant")
    for name in ("", " x", "x" * 65, "a\nb", "\x00", "\ud800"):
        with pytest.raises(InvalidRequest):
            await world.accounts.create_project(name)
    with pytest.raises(Conflict, match="project local already"):
        await world.accounts.create_project("local")
    right = {"name": "u", "password": PASSWORD, "project_id": project.id, "role": ROLE_FULL}
    for wrong, error in (
        ({"name": "admin"}, Conflict),
        ({"name": ""}, InvalidRequest),
        ({"role": "root"}, InvalidRequest),
        ({"password": "short"}, InvalidRequest),
        ({"project_id": "f" * 32}, AccountNotFound),
        ({"project_id": "\x00"}, AccountNotFound),
    ):
        with pytest.raises(error):
            await world.accounts.create_user(**{**right, **wrong})
    for user_id in ("f" * 32, "x", "\x00"):
        with pytest.raises(AccountNotFound):
            await world.accounts.create_access_key(user_id)
    assert [user.name for user in await world.accounts.users()] == ["admin"]


async def test_disabling_works_within_seconds(world: World):
    """A disabled user, a lost role, a disabled project and a disabled key stop valid tokens and keys."""
    token = (await world.logins.log_in(Login(password=world.first.password, user_name="admin"), None)).text
    key = (world.first.access_key, world.first.secret_key)

    async def change(sql: str) -> None:
        async with world.database.transaction() as conn:
            await conn.execute(sql)
        world.clock.forward(FRESH_S)

    await change("UPDATE projects SET enabled = false")
    assert (await world.callers.caller_of_token(token)).project_id == ""
    await change("UPDATE projects SET enabled = true")
    await change("DELETE FROM role_assignments WHERE role = 'te_admin'")
    assert (await world.callers.caller_of_token(token)).roles == {ROLE_OPERATOR}
    await world.callers.caller_of_signature(*signed(world, *key), "")
    await change("UPDATE access_keys SET enabled = false")
    with pytest.raises(Unauthenticated, match="verify aksk signature fail"):
        await world.callers.caller_of_signature(*signed(world, *key), "")
    await change("UPDATE users SET enabled = false")
    with pytest.raises(Unauthenticated, match="disabled"):
        await world.callers.caller_of_token(token)
    with pytest.raises(Unauthenticated, match="the user name or the password is wrong"):
        await world.logins.log_in(Login(password=world.first.password, user_name="admin"), None)


async def test_a_deleted_key_signs_nothing(world: World):
    """Keys are listed without secrets; a deleted one is refused within seconds; an unknown one cannot be deleted."""
    (admin,) = await world.accounts.users()
    made = await world.accounts.create_access_key(admin.id)
    listed = await world.accounts.access_keys()
    assert {key.access_key for key in listed} == {world.first.access_key, made.access_key}
    assert made.secret_key not in repr(listed)
    await world.callers.caller_of_signature(*signed(world, made.access_key, made.secret_key), "")
    await world.accounts.delete_access_key(made.access_key)
    world.clock.forward(FRESH_S)
    with pytest.raises(Unauthenticated, match="verify aksk signature fail"):
        await world.callers.caller_of_signature(*signed(world, made.access_key, made.secret_key), "")
    for unknown in (made.access_key, "x", "\x00"):
        with pytest.raises(AccountNotFound):
            await world.accounts.delete_access_key(unknown)


async def test_an_unknown_access_key_reads_like_a_wrong_secret(world: World):
    """Whether a key exists cannot be told from the refusal."""
    messages = set()
    for key in ((world.first.access_key, "wrong"), ("A" * 20, world.first.secret_key)):
        with pytest.raises(Unauthenticated) as caught:
            await world.callers.caller_of_signature(*signed(world, *key), "")
        messages.add(caught.value.message)
    assert len(messages) == 1


async def test_replays_are_refused(world: World):
    """A changing call that comes again more than 5 s later is refused, honest equals and reads are not."""
    key = (world.first.access_key, world.first.secret_key)
    call = signed(world, *key, method="POST", body="{}")
    read = signed(world, *key)
    for _ in range(2):  # two equal calls of one second
        await world.callers.caller_of_signature(*call, "")
    await world.callers.caller_of_signature(*read, "")
    late = signed(world, *key, method="DELETE")
    world.clock.forward(6)
    await world.callers.caller_of_signature(*read, "")
    await world.callers.caller_of_signature(*late, "")  # slow on its way, but the first time
    for seen in (call, late):
        with pytest.raises(Unauthenticated, match="received before"):
            await world.callers.caller_of_signature(*seen, "")


async def test_a_clock_ahead_opens_no_window_for_replays(world: World):
    """A call dated in the future is fenced from its first sight on."""
    world.clock.forward(600)
    call = signed(world, world.first.access_key, world.first.secret_key, method="POST", body="{}")
    world.clock.forward(-600)
    await world.callers.caller_of_signature(*call, "")
    world.clock.forward(6)
    with pytest.raises(Unauthenticated, match="received before"):
        await world.callers.caller_of_signature(*call, "")


async def test_the_fence_is_shared_and_swept(world: World):
    """Another process sees the same signatures; those that no clock can bring back are deleted."""
    key = (world.first.access_key, world.first.secret_key)
    call = signed(world, *key, method="POST", body="{}")
    await world.callers.caller_of_signature(*call, "")
    ring = Ring([b"m" * 32])
    other = Callers(
        database=world.database,
        accounts=world.accounts,
        ring=ring,
        keys=TokenKeys(database=world.database, ring=ring, clock=world.clock),
        clock=world.clock,
        token_ttl_s=60,
    )
    world.clock.forward(6)
    with pytest.raises(Unauthenticated, match="received before"):
        await other.caller_of_signature(*call, "")
    world.clock.forward(3600)
    for number in range(256):
        await other.caller_of_signature(*signed(world, *key, method="POST", body=str(number)), "")
    async with world.database.read() as conn:
        row = await (await conn.execute("SELECT count(*) FROM seen_signatures")).fetchone()
    assert row == (256,)


async def test_guessing_is_braked(world: World):
    """After ten wrong passwords of a user even the right one waits; a name that nobody has is braked alike."""
    for name in ("admin", "nobody"):
        login = Login(password="wrong", user_name=name)
        for _ in range(FAILURES_FREE):
            with pytest.raises(Unauthenticated):
                await world.logins.log_in(login, None)
        with pytest.raises(Throttled, match="Too many failed logins"):
            await world.logins.log_in(login, None)
    right = Login(password=world.first.password, user_name="admin", domain_id="default")
    with pytest.raises(Throttled):
        await world.logins.log_in(right, None)
    world.clock.forward(10)
    await world.logins.log_in(right, None)
