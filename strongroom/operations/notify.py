"""How a message goes out: mail by SMTP, webhooks by HTTP with a signature. Where it may go is decided here.

    POST <url>      body: {"id", "event", "project_id", "created_at", "sent_at", "data"}
    X-Strongroom-Id         the same in every attempt: a receiver that has seen it forgets the second one
    X-Strongroom-Timestamp  seconds; a receiver refuses old ones
    X-Strongroom-Signature  v1=<hex of HMAC-SHA256(secret, timestamp + "." + body)>

A tenant names the URL and this server calls it, so it must not become a way into the operator's network: only https,
only to addresses that are public, found out by us and used as found (a name that changes its address between the look
and the call gains nothing), no redirects, no answer read. What the operator lists in `webhook_allow` is exempt.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import smtplib
import socket
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from urllib.parse import urlsplit

import httpx

from strongroom.base.clock import Clock, api_timestamp
from strongroom.base.errors import InvalidRequest, StrongroomError
from strongroom.control import notifications
from strongroom.control.db import Database
from strongroom.control.figures import read_resources
from strongroom.control.notifications import Delivery
from strongroom.control.outgoing import Outgoing
from strongroom.control.tokens import Ring

SEND_S_MAX = 15.0
URL_CHARS_MAX = 1024
_TITLES = {
    "failed": "A task failed",
    "partly": "A restore point lacks resources",
    "did_not_run": "A backup did not run",
    "nearly_full": "A vault is nearly full",
    "damage": "A check found damage",
    "test": "A test",
}


def check_target(kind: str, target: str, outgoing: Outgoing) -> None:
    """Raises InvalidRequest for what could never be sent. Where a name leads is looked at when something is sent."""
    if kind == "mail":
        name, at, domain = target.rpartition("@")
        plain = target.isascii() and target.isprintable() and not set(target) & set(' ,;:<>()[]"\\')
        if not at or not name or "." not in domain or len(target) > 254 or not plain:
            raise InvalidRequest(reason="Invalid target: give one address, such as backup@example.org.")
        if outgoing.smtp_host is None:
            raise InvalidRequest(reason="This server sends no mail: its operator has set no smtp_host. Use a webhook.")
        return
    try:
        parts = urlsplit(target)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if (
        not host or len(target) > URL_CHARS_MAX or not target.isascii() or not target.isprintable() or " " in target
        or parts.username is not None or parts.fragment or port == 0 or parts.scheme not in ("https", "http")
    ):  # fmt: skip
        raise InvalidRequest(reason="Invalid target: give a URL such as https://example.org/hook.")
    if parts.scheme == "http" and not _allowed_host(host, outgoing.allow):
        raise InvalidRequest(reason="Invalid target: webhooks are https only; the operator can allow others.")
    if _literal(host) is not None:
        _require_reachable(host, [host], outgoing.allow)


def _literal(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def _allowed_host(host: str, allow: Sequence[str]) -> bool:
    return host.lower() in allow or any(_in_network(host, each) for each in allow)


def _in_network(address: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network)
    except ValueError:
        return False


def _require_reachable(host: str, addresses: Sequence[str], allow: Sequence[str]) -> None:
    """Every address of the host is public, or allowed. Raises InvalidRequest that names neither address nor network."""
    for address in addresses:
        ip = ipaddress.ip_address(address)
        mapped = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
        public = ip.is_global and not ip.is_multicast and (mapped is None or mapped.is_global)
        if not public and not _allowed_host(host, allow) and not any(_in_network(address, each) for each in allow):
            raise InvalidRequest(reason="The target is not a public address. Its operator can allow it: webhook_allow.")


async def deliver_due(database: Database, outgoing: Outgoing, ring: Ring, clock: Clock) -> int:
    """One look of a worker at the outbox: what is due is sent, all at once. Gives how many were tried."""
    due = await notifications.claim_due(database)
    for delivery, error in zip(due, await asyncio.gather(*(send(d, outgoing, ring, clock) for d in due)), strict=True):
        await notifications.note_delivery(database, delivery, error)
    return len(due)


async def look_for_overdue(database: Database, clock: Clock) -> None:
    """Runs that did not happen become messages, where somebody wants to hear of them; old messages go."""
    await notifications.purge_deliveries(database)
    wanted = await notifications.wanted_overdue(database)
    if wanted:
        now = clock.now()
        found = await read_resources(database, now)
        await notifications.tell_overdue(database, [r for r in found if r.project_id in wanted and r.overdue(now)])


async def send(delivery: Delivery, outgoing: Outgoing, ring: Ring, clock: Clock) -> str:
    """Deliver once: "" when the receiver took it, else the sentence why not, for who asks."""
    try:
        async with asyncio.timeout(SEND_S_MAX):
            if delivery.kind == "mail":
                await asyncio.to_thread(_mail, delivery, outgoing, clock)
            else:
                await _post(delivery, outgoing, ring, clock)
    except TimeoutError:
        return f"It did not answer within {SEND_S_MAX:.0f} s."
    except StrongroomError as error:
        return error.message
    except (httpx.HTTPError, httpx.InvalidURL, smtplib.SMTPException, OSError, ValueError) as error:
        return f"It cannot be reached: {type(error).__name__}."
    return ""


def message(delivery: Delivery, clock: Clock) -> bytes:
    """The body of a webhook."""
    body = {
        "id": delivery.id,
        "event": delivery.event,
        "project_id": delivery.project_id,
        "created_at": api_timestamp(delivery.created_at),
        "sent_at": api_timestamp(clock.now()),
        "data": delivery.payload,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Of one attempt."""
    return "v1=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


async def _post(delivery: Delivery, outgoing: Outgoing, ring: Ring, clock: Clock) -> None:
    check_target("webhook", delivery.target, outgoing)
    url = httpx.URL(delivery.target)
    host, port = url.host, url.port or (443 if url.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(each[4][0]) for each in found]
    _require_reachable(host, addresses, outgoing.allow)
    body, timestamp = message(delivery, clock), str(int(clock.now().timestamp()))
    secret = ring.open_secret(bytes(delivery.secret_sealed or b""))
    headers = {
        "Host": url.netloc.decode(),
        "Content-Type": "application/json",
        "User-Agent": "strongroom",
        "X-Strongroom-Id": delivery.id,
        "X-Strongroom-Timestamp": timestamp,
        "X-Strongroom-Signature": signature(secret, timestamp, body),
    }
    async with httpx.AsyncClient(timeout=SEND_S_MAX, trust_env=False, follow_redirects=False) as client:
        at = url.copy_with(host=addresses[0])
        async with client.stream(
            "POST", at, content=body, headers=headers, extensions={"sni_hostname": host}
        ) as answer:
            if not 200 <= answer.status_code < 300:
                raise InvalidRequest(reason=f"It answered with status {answer.status_code}.")


def _mail(delivery: Delivery, outgoing: Outgoing, clock: Clock) -> None:
    check_target("mail", delivery.target, outgoing)
    assert outgoing.smtp_host is not None  # checked
    mail = EmailMessage()
    mail["From"], mail["To"] = outgoing.smtp_from, delivery.target
    name = delivery.payload.get("vault_name") or delivery.payload.get("resource_name") or ""
    title = f"Strongroom: {_TITLES.get(delivery.event, delivery.event)}" + (f": {name}" if name else "")
    mail["Subject"] = "".join(c if c.isprintable() else " " for c in title)
    mail["Message-ID"] = f"<{delivery.id}@strongroom>"
    mail["X-Strongroom-Id"] = delivery.id
    lines = [f"{key}: {value}" for key, value in delivery.payload.items() if value not in (None, "")]
    mail.set_content("\n".join([title, "", f"at: {api_timestamp(delivery.created_at)}Z", *lines, ""]))
    context = ssl.create_default_context()
    host, port = outgoing.smtp_host, outgoing.smtp_port
    with (
        smtplib.SMTP_SSL(host, port, timeout=SEND_S_MAX, context=context)
        if outgoing.smtp_tls == "tls"
        else smtplib.SMTP(host, port, timeout=SEND_S_MAX)
    ) as client:
        if outgoing.smtp_tls == "starttls":
            client.starttls(context=context)
        if outgoing.smtp_user is not None and outgoing.smtp_password is not None:
            client.login(outgoing.smtp_user, outgoing.smtp_password)
        client.send_message(mail)
