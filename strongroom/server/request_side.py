"""The request side of a process: identity, the table of operations, and the application made of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp

from strongroom.api.accounts import AccountsApi
from strongroom.api.app import build_app
from strongroom.api.authentication import Authenticator, RegionAuthenticator
from strongroom.api.catalogue_figures import MetricsAccess
from strongroom.api.identity import IdentityApi
from strongroom.api.keystone import KeystoneAuthenticator
from strongroom.api.operation import Operation
from strongroom.api.services import Authenticate, Limits, NewAgentToken, Probe, Services
from strongroom.api.table import OPERATIONS
from strongroom.config import Settings
from strongroom.control.accounts import Accounts
from strongroom.control.callers import Callers
from strongroom.control.logins import Logins
from strongroom.control.passwords import Passwords
from strongroom.control.token_keys import TokenKeys
from strongroom.control.tokens import Ring
from strongroom.engine.store.retention import retains
from strongroom.operations.browsing import ResourceInspector, RestorePointBrowser
from strongroom.operations.job import Tools
from strongroom.operations.notify import check_target
from strongroom.operations.portal import Portal
from strongroom.operations.regions import RegionGate
from strongroom.server.agents import agent_tokens
from strongroom.server.parts import Parts
from strongroom.state import note_endpoint, write_credentials


@dataclass(frozen=True, kw_only=True)
class RequestSide:
    """The application, and what it was made of as far as its process needs it."""

    app: ASGIApp
    services: Services


@asynccontextmanager
async def request_side(
    parts: Parts, endpoint: str, probes: dict[str, Probe], groups: frozenset[str]
) -> AsyncIterator[RequestSide]:
    """Made on the running loop; at the very first start of the installation with its first account.

    groups  worker groups whose sources this process reaches
    """
    settings, database, clock = parts.settings, parts.database, parts.clock
    ring, passwords = Ring([settings.master_key_file.read_bytes()]), Passwords()
    accounts = Accounts(database=database, ring=ring, passwords=passwords, clock=clock)
    keys = TokenKeys(database=database, ring=ring, clock=clock)
    callers = Callers(
        database=database, accounts=accounts, ring=ring, keys=keys, clock=clock, token_ttl_s=settings.token_ttl_s
    )
    logins = Logins(database=database, callers=callers, passwords=passwords, clock=clock)
    own, keystone = Authenticator(callers), None
    if settings.keystone is not None:
        keystone = KeystoneAuthenticator(settings.keystone, own=own, database=database, clock=clock)
    try:
        await accounts.bootstrap(settings.region, lambda first: write_credentials(settings, endpoint, first))
        note_endpoint(settings, endpoint)
        tools = parts.tools(database, Portal(asyncio.get_running_loop()))
        services = _services(settings, tools, keystone or own, parts.probes() | probes, groups, agent_tokens(parts))
        rows = _account_operations(settings, accounts, callers, logins, passwords, keys)
        yield RequestSide(app=build_app((*OPERATIONS, *rows), services), services=services)
    finally:
        if keystone is not None:
            await keystone.close()
        passwords.close()


def _account_operations(
    settings: Settings,
    accounts: Accounts,
    callers: Callers,
    logins: Logins,
    passwords: Passwords,
    keys: TokenKeys,
) -> tuple[Operation, ...]:
    """What the identity adds to the table of operations."""
    identity = IdentityApi(
        callers=callers,
        logins=logins,
        accounts=accounts,
        region=settings.region,
        endpoint=settings.endpoint,
        tokens_of=settings.keystone.url if settings.keystone is not None else None,
    )
    admin = AccountsApi(accounts=accounts, callers=callers, passwords=passwords, keys=keys, endpoint=settings.endpoint)
    return (*identity.operations, *admin.operations)


def _services(
    settings: Settings,
    tools: Tools,
    authenticate: Authenticate,
    probes: dict[str, Probe],
    groups: frozenset[str],
    new_agent_token: NewAgentToken | None,
) -> Services:
    async def store_retains() -> bool:
        return await asyncio.to_thread(retains, tools.store)

    return Services(
        database=tools.database,
        clock=tools.clock,
        region=settings.region,
        endpoint=settings.endpoint,
        regions=RegionGate(tools),
        authenticate_region=RegionAuthenticator(settings.regions, own=settings.region, clock=tools.clock),
        authenticate=authenticate,
        browser=RestorePointBrowser(tools),
        retains=store_retains,
        inspector=ResourceInspector(forbidden=tools.own_places, tools=tools),
        new_agent_token=new_agent_token,
        probes=probes,
        groups=groups,
        check_target=partial(check_target, outgoing=settings.outgoing),
        seal_secret=Ring([settings.master_key_file.read_bytes()]).seal_secret,
        metrics=MetricsAccess(
            token=settings.metrics_token,
            detail=settings.metrics_detail == "vaults",
            series_max=settings.metrics_series_max,
        ),
        limits=Limits(
            body_bytes_max=settings.body_bytes_max,
            concurrency_max=settings.requests_max,
            of_project_max=max(1, settings.requests_max // 2),
        ),
    )
