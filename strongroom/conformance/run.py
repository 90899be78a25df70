"""All clients, one after the other, each with its story."""

import contextlib
import datetime
import uuid
from collections.abc import Callable, Iterator

import httpx

from strongroom.conformance.contract import Exchange
from strongroom.conformance.findings import Findings
from strongroom.conformance.plain import PlainActor
from strongroom.conformance.story import Actor, load, tell
from strongroom.conformance.target import Party, Target

CLIENTS = {
    "curl": "plain requests with a token",
    "sdk": "huaweicloudsdkcbr, AK/SK",
    "openstack": "`openstack cbr` of otcextensions",
    "conn.cbr": "`conn.cbr` of otcextensions",
    "terraform": "recorded requests of terraform-provider-huaweicloud, AK/SK",
    "gopher": "recorded requests of gophertelekomcloud, token",
}
AGENTS = {
    "curl": "curl/8.5.0",
    "terraform": "terraform-provider-huaweicloud golangsdk/2.0.0",
    "gopher": "gophertelekomcloud/1.0.0",
}
STORIES = {"curl": ("operations", "refusals"), "sdk": ("operations",)}  # the others: the file of their name
NEED_TOKEN = frozenset({"openstack", "conn.cbr", "gopher"})
UNKNOWN_ID = "0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f"


class NoPasswordError(Exception):
    """A client needs a token, and nobody can ask for one."""


def run(target: Target, clients: list[str], now: datetime.datetime, say: Callable[[str], None]) -> Findings:
    """Tell each client's story."""
    findings = Findings()
    for client in clients:
        say(f"{client}: {CLIENTS[client]}")
        try:
            with _actors(client, target, findings) as actors:
                for story in STORIES.get(client, (client,)):
                    tell(client, load(story), actors, variables(target, client, now), findings)
        except ModuleNotFoundError as err:
            findings.absent_clients[client] = f"{err.name} is not installed"
        except NoPasswordError:
            findings.absent_clients[client] = "it needs a token, and the credentials have no user name and password"
        except httpx.HTTPStatusError as err:
            findings.absent_clients[client] = f"it gets no token: {err.response.status_code} {err.response.text[:200]}"
        if client in findings.absent_clients:
            say(f"  did not run: {findings.absent_clients[client]}")
    return findings


def variables(target: Target, client: str, now: datetime.datetime) -> dict[str, str]:
    """What every story starts with. `run` makes names that nobody else has."""
    return {
        **target.variables(),
        "run": f"{client.replace('.', '-')}-{uuid.uuid4().hex[:8]}",
        "unknown_id": UNKNOWN_ID,
        "agent_id": str(uuid.uuid4()),
        "in_a_year": (now + datetime.timedelta(days=365)).date().isoformat(),
    }


@contextlib.contextmanager
def _actors(client: str, target: Target, findings: Findings) -> Iterator[dict[str, Actor | None]]:
    """The client in each role. Raises ModuleNotFoundError when its library is not installed."""
    with contextlib.ExitStack() as stack:
        made: dict[str, Actor | None] = {}
        make = _maker(client, findings, stack)
        for role, party in (("", target.owner), ("partner", target.partner), ("replica", target.replica)):
            if party is None:
                continue
            if client in NEED_TOKEN and not party.has_password:
                if not role:
                    raise NoPasswordError
            else:
                actor = make(party)
                stack.callback(actor.close)
                made[role] = actor
        yield made


def _maker(client: str, findings: Findings, stack: contextlib.ExitStack) -> Callable[[Party], Actor]:
    def watch(exchange: Exchange) -> None:
        findings.exchange(client, exchange)

    if client in AGENTS:
        signs = client == "terraform"
        return lambda party: PlainActor(party, signs=signs, user_agent=AGENTS[client], watch=watch)
    from strongroom.conformance.listening import Ear, listening

    ear = Ear(watch)
    stack.enter_context(listening(ear))
    if client == "sdk":
        from strongroom.conformance.sdk import SdkActor

        return lambda party: SdkActor(party, ear, findings)
    from strongroom.conformance.openstack import CommandActor, ConnectionActor

    kind = CommandActor if client == "openstack" else ConnectionActor
    return lambda party: kind(party, ear)
