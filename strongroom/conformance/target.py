"""Where the kit goes, and as whom."""

from dataclasses import dataclass, field

import httpx


@dataclass(frozen=True, kw_only=True)
class Party:
    """One tenant on the endpoint.

    `signed` makes Authorization headers as a client that signs the named headers does. Without username and password
    there is no token, and the clients that need one do not run.
    """

    endpoint: str
    project_id: str
    access_key: str
    secret_key: str = field(repr=False)
    username: str = ""
    password: str = field(default="", repr=False)
    domain_name: str = ""
    project_name: str = ""
    region: str = ""
    signed: httpx.Auth | None = field(default=None, repr=False)

    @property
    def has_password(self) -> bool:
        """Whether a token can be asked for."""
        return bool(self.username and self.password and self.domain_name and self.project_name)


@dataclass(frozen=True, kw_only=True)
class Target:
    """`partner` is a tenant of another project, for sharing. The resource is backed up, and restored over."""

    owner: Party
    partner: Party | None
    resource_id: str
    resource_name: str
    resource_type: str
    object_type: str
    variables: dict[str, str] = field(default_factory=dict)


SPEC_NOUN = {"disk": "volume"}  # in a vault's spec_code, where it is not the object_type itself
RESTORE_MEMBER = {"turbo": "resource_id", "disk": "volume_id", "server": "server_id"}  # by object_type
