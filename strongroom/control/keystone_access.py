"""How another Keystone is reached, and what its roles are here. Pure: the settings are read in config.py."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from strongroom.control.access import ACTIONS_OF, ROLE_OPERATOR

_TENANT_ROLES = tuple(role for role in ACTIONS_OF if role != ROLE_OPERATOR)  # no role there makes an operator here


@dataclass(frozen=True, kw_only=True)
class KeystoneAccess:
    """How the other Keystone is reached and read.

    url      with /v3, without a slash at its end
    ca       certificates it is trusted by; None: the system's
    roles    lower-case name of a role there -> role here
    cache_s  how long an answer is used; 0: every request asks
    """

    url: str
    user: str
    password: str = field(repr=False)
    user_domain: str
    project: str
    project_domain: str
    ca: Path | None
    roles: Mapping[str, str]
    cache_s: int


def parse_roles(text: str) -> dict[str, str]:
    """ "theirs=ours,theirs=ours" as a mapping; our own names stand for themselves. Raises ValueError as settings do."""
    found = {role.lower(): role for role in _TENANT_ROLES}
    for part in text.split(","):
        theirs, equals, ours = (word.strip() for word in part.partition("="))
        if not equals or not theirs or ours not in _TENANT_ROLES:
            raise ValueError(f"such as member=CBR FullAccess, with roles of ours: {', '.join(_TENANT_ROLES)}")
        found[theirs.lower()] = ours
    return found


def keystone_access(values: Mapping[str, Any]) -> KeystoneAccess:
    """`values`: the settings without their prefix. Raises ValueError with what is wrong with them."""
    for name in ("url", "password"):
        if not values[name]:
            raise ValueError(f"keystone_{name} is not set")
    place = urlsplit(values["url"])
    if place.scheme != "https" and not _is_loopback(place.hostname or ""):
        raise ValueError("keystone_url does not begin with https://, and tokens and a password go there")
    if not place.path.rstrip("/").endswith("/v3"):
        raise ValueError("keystone_url does not end with /v3")
    if values["ca"] is not None and not values["ca"].is_file():
        raise ValueError(f"the file {values['ca']} of keystone_ca does not exist")
    return KeystoneAccess(**{**values, "url": values["url"].rstrip("/")})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
