"""Shapes of what the identity answers: Keystone's (contract/identity.md), and the operator's accounts under /ext."""

import msgspec


class Link(msgspec.Struct):
    href: str
    rel: str


class VersionView(msgspec.Struct):
    id: str
    status: str
    version: str
    min_version: str
    updated: str
    links: list[Link]


class VersionsAnswer(msgspec.Struct):
    versions: list[VersionView]


class NamedView(msgspec.Struct):
    id: str
    name: str


class EndpointView(msgspec.Struct):
    id: str
    interface: str
    url: str
    region: str
    region_id: str


class ServiceView(msgspec.Struct):
    id: str
    type: str
    name: str
    endpoints: list[EndpointView]


class TokenUser(msgspec.Struct):
    id: str
    name: str
    domain: NamedView


class TokenProject(msgspec.Struct):
    id: str
    name: str
    domain: NamedView


class TokenView(msgspec.Struct, kw_only=True):
    """What a token says; it stands itself in X-Subject-Token. Without a project: no project, roles and catalog."""

    methods: list[str]
    issued_at: str
    expires_at: str
    user: TokenUser
    project: TokenProject | msgspec.UnsetType = msgspec.UNSET
    roles: list[NamedView] | msgspec.UnsetType = msgspec.UNSET
    catalog: list[ServiceView] | msgspec.UnsetType = msgspec.UNSET


class TokenAnswer(msgspec.Struct):
    token: TokenView


class ProjectView(msgspec.Struct, kw_only=True):
    id: str
    name: str
    description: str
    domain_id: str
    parent_id: str
    is_domain: bool
    enabled: bool
    links: dict[str, str]


class ProjectAnswer(msgspec.Struct):
    project: ProjectView


class ProjectsAnswer(msgspec.Struct):
    projects: list[ProjectView]
    links: dict[str, str] | msgspec.UnsetType = msgspec.UNSET  # Keystone's, always empty


class DomainView(msgspec.Struct):
    id: str
    name: str
    enabled: bool


class DomainsAnswer(msgspec.Struct):
    domains: list[DomainView]
    links: dict[str, str]


class CatalogAnswer(msgspec.Struct):
    catalog: list[ServiceView]
    links: dict[str, str]


class UserView(msgspec.Struct):
    id: str
    name: str
    domain_id: str
    enabled: bool


class UserAnswer(msgspec.Struct):
    user: UserView


class UsersAnswer(msgspec.Struct):
    users: list[UserView]


class NewKeyView(msgspec.Struct, kw_only=True):
    """secret_key is told this once. Of a temporary key: until when, and what is sent beside it."""

    access_key: str
    secret_key: str
    user_id: str
    security_token: str | msgspec.UnsetType = msgspec.UNSET
    expires_at: str | msgspec.UnsetType = msgspec.UNSET


class NewKeyAnswer(msgspec.Struct):
    key: NewKeyView


class KeyView(msgspec.Struct):
    """expires_at: null for one that stays."""

    access_key: str
    user_id: str
    enabled: bool
    expires_at: str | None


class KeysAnswer(msgspec.Struct):
    keys: list[KeyView]


class DomainAnswer(msgspec.Struct):
    domain: NamedView


class AccountDomainsAnswer(msgspec.Struct):
    domains: list[NamedView]


class EnabledView(msgspec.Struct):
    id: str
    enabled: bool


class EnabledAnswer(msgspec.Struct):
    project: EnabledView


class RoleView(msgspec.Struct):
    """project_id and project_name: null for the operator's role."""

    role: str
    project_id: str | None
    project_name: str | None


class RolesAnswer(msgspec.Struct):
    roles: list[RoleView]


class TokenKeyView(msgspec.Struct):
    """keys: how many open tokens now."""

    keys: int


class TokenKeyAnswer(msgspec.Struct):
    token_key: TokenKeyView
