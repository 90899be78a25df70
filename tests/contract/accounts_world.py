"""Accounts on a real PostgreSQL, with a clock that stands: what the tests of the identity work with."""

import dataclasses
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import Signer

from strongroom.control.accounts import Accounts, FirstAccount
from strongroom.control.callers import Callers
from strongroom.control.db import Database
from strongroom.control.logins import Logins
from strongroom.control.passwords import Passwords
from strongroom.control.signatures import SignedRequest
from strongroom.control.token_keys import TokenKeys
from strongroom.control.tokens import Ring

PASSWORD = "correct horse battery"


@dataclasses.dataclass
class StoppedClock:
    at: datetime = datetime(2026, 1, 31, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return self.at.timestamp()

    def forward(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclasses.dataclass(kw_only=True)
class World:
    database: Database
    clock: StoppedClock
    accounts: Accounts
    keys: TokenKeys
    callers: Callers
    logins: Logins
    passwords: Passwords
    first: FirstAccount | None


@asynccontextmanager
async def opened_world(database: Database, clock: StoppedClock | None = None) -> AsyncIterator[World]:
    """After a first start; with the same clock and another world on the database: a second process."""
    clock = clock or StoppedClock()
    ring, passwords = Ring([b"m" * 32]), Passwords()
    accounts = Accounts(database=database, ring=ring, passwords=passwords, clock=clock)
    keys = TokenKeys(database=database, ring=ring, clock=clock)
    callers = Callers(database=database, accounts=accounts, ring=ring, keys=keys, clock=clock, token_ttl_s=3600)
    logins = Logins(database=database, callers=callers, passwords=passwords, clock=clock)
    saved: list[FirstAccount] = []
    await accounts.bootstrap("local", saved.append)
    try:
        yield World(
            database=database,
            clock=clock,
            accounts=accounts,
            keys=keys,
            callers=callers,
            logins=logins,
            passwords=passwords,
            first=saved[0] if saved else None,
        )
    finally:
        passwords.close()


def signed(
    world: World, access_key: str, secret_key: str, *, method: str = "GET", path: str = "/v3/p/vaults", body: str = ""
) -> tuple[str, SignedRequest]:
    """Authorization and wire request, by the SDK's own signer at the world's time."""
    request = SdkRequest(
        method=method, schema="http", host="h", resource_path=path, query_params=[], body=body,
        header_params={"X-Sdk-Date": f"{world.clock.at:%Y%m%dT%H%M%SZ}"},
    )  # fmt: skip
    Signer(types.SimpleNamespace(ak=access_key, sk=secret_key)).sign(request)
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in request.header_params.items()]
    wire = SignedRequest(method=method, target=path.encode(), query=b"", headers=headers, body=body.encode())
    return request.header_params["Authorization"], wire
