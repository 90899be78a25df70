"""The operator's accounts under /ext/v1/admin: domains, projects, users, roles, access keys, and the keys of tokens."""

from typing import Any

import msgspec

from strongroom.api.identity import base_url, project_view
from strongroom.api.identity_answers import (
    AccountDomainsAnswer,
    DomainAnswer,
    EnabledAnswer,
    KeysAnswer,
    NewKeyAnswer,
    ProjectAnswer,
    ProjectsAnswer,
    RolesAnswer,
    TokenKeyAnswer,
    UserAnswer,
    UsersAnswer,
)
from strongroom.api.operation import Call, Operation
from strongroom.base.errors import InvalidRequest
from strongroom.control import account_changes
from strongroom.control.access import ACTION_ADMIN, ROLE_TENANT_ADMIN
from strongroom.control.accounts import DEFAULT_DOMAIN, AccessKey, AccountDomain, Accounts, User
from strongroom.control.callers import Callers
from strongroom.control.passwords import Passwords
from strongroom.control.token_keys import TokenKeys

# --- what operators send --------------------------------------------------------------------------------------------


class NewDomain(msgspec.Struct, kw_only=True):
    name: str


class DomainRequest(msgspec.Struct, kw_only=True):
    domain: NewDomain


class NewProject(msgspec.Struct, kw_only=True):
    name: str
    description: str = ""
    domain_id: str = DEFAULT_DOMAIN


class ProjectRequest(msgspec.Struct, kw_only=True):
    project: NewProject


class Enabled(msgspec.Struct, kw_only=True):
    enabled: bool


class ProjectChange(msgspec.Struct, kw_only=True):
    project: Enabled


class NewUser(msgspec.Struct, kw_only=True):
    name: str
    password: str
    project_id: str = ""
    role: str = ROLE_TENANT_ADMIN


class UserRequest(msgspec.Struct, kw_only=True):
    user: NewUser


class UserMembers(msgspec.Struct, kw_only=True):
    """Absent members stay as they are. log_out: every token of before is void, which a new password does as well."""

    password: str | None = None
    enabled: bool | None = None
    log_out: bool = False


class UserChange(msgspec.Struct, kw_only=True):
    user: UserMembers


class RoleMembers(msgspec.Struct, kw_only=True):
    """project_id: none for the operator's role `admin`."""

    role: str
    project_id: str = ""


class RoleRequest(msgspec.Struct, kw_only=True):
    role: RoleMembers


class NewKey(msgspec.Struct, kw_only=True):
    """duration_seconds: a temporary key, with a security token that is sent beside it."""

    user_id: str
    duration_seconds: int | None = None


class KeyRequest(msgspec.Struct, kw_only=True):
    key: NewKey


class KeyChange(msgspec.Struct, kw_only=True):
    key: Enabled


class TokenKeyMembers(msgspec.Struct, kw_only=True):
    """forget_old: what the old keys sealed is void, so everybody has to log in again."""

    forget_old: bool = False


class TokenKeyRequest(msgspec.Struct, kw_only=True):
    token_key: TokenKeyMembers


# --- handlers -------------------------------------------------------------------------------------------------------


class AccountsApi:
    """Handlers that need the identity; made once, its `operations` join the table. endpoint: as of IdentityApi."""

    def __init__(
        self, *, accounts: Accounts, callers: Callers, passwords: Passwords, keys: TokenKeys, endpoint: str | None
    ) -> None:
        self._accounts = accounts
        self._callers = callers
        self._passwords = passwords
        self._keys = keys
        self._endpoint = endpoint

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Rows of the table, all for the role `admin` of the default domain."""
        made, nothing = {"status": 201}, {"status": 204}
        rows: tuple[tuple[str, str, Any, type[msgspec.Struct] | None, type[msgspec.Struct] | None, Any], ...] = (
            ("create_domain", "POST domains", self.create_domain, DomainRequest, DomainAnswer, made),
            ("list_domains", "GET domains", self.all_domains, None, AccountDomainsAnswer, {}),
            ("create_project", "POST projects", self.create_project, ProjectRequest, ProjectAnswer, made),
            ("list_projects", "GET projects", self.all_projects, None, ProjectsAnswer, {}),
            ("change_project", "PUT projects/{account_id}", self.change_project, ProjectChange, EnabledAnswer, {}),
            ("create_user", "POST users", self.create_user, UserRequest, UserAnswer, made),
            ("list_users", "GET users", self.all_users, None, UsersAnswer, {}),
            ("change_user", "PUT users/{user_id}", self.change_user, UserChange, None, nothing),
            ("delete_user", "DELETE users/{user_id}", self.delete_user, None, None, nothing),
            ("list_roles", "GET users/{user_id}/roles", self.roles, None, RolesAnswer, {}),
            ("give_role", "POST users/{user_id}/roles", self.give_role, RoleRequest, None, nothing),
            ("take_role", "POST users/{user_id}/roles/take", self.take_role, RoleRequest, None, nothing),
            ("create_key", "POST keys", self.create_key, KeyRequest, NewKeyAnswer, made),
            ("list_keys", "GET keys", self.all_keys, None, KeysAnswer, {}),
            ("change_key", "PUT keys/{access_key}", self.change_key, KeyChange, None, nothing),
            ("delete_key", "DELETE keys/{access_key}", self.delete_key, None, None, nothing),
            ("change_token_key", "POST token-keys", self.change_token_key, TokenKeyRequest, TokenKeyAnswer, {}),
        )
        return tuple(
            Operation(
                name=f"admin_{name}",
                method=method,
                path=f"/ext/v1/admin/{path}",
                action=ACTION_ADMIN,
                handler=handler,
                body=body,
                answer=answer,
                audit=method != "GET",
                **more,
            )
            for name, place, handler, body, answer, more in rows
            for method, _, path in [place.partition(" ")]
        )

    async def create_domain(self, call: Call) -> dict[str, Any]:
        services = call.services
        made = await account_changes.create_domain(services.database, call.body.domain.name, services.clock.now())
        return {"domain": _domain(made)}

    async def all_domains(self, call: Call) -> dict[str, Any]:
        return {"domains": [_domain(d) for d in await account_changes.domains(call.services.database)]}

    async def create_project(self, call: Call) -> dict[str, Any]:
        new: NewProject = call.body.project
        made = await self._accounts.on(call.services.database).create_project(new.name, new.description, new.domain_id)
        return {"project": project_view(made, base_url(self._endpoint, call.request))}

    async def all_projects(self, call: Call) -> dict[str, Any]:
        base = base_url(self._endpoint, call.request)
        return {"projects": [project_view(p, base) for p in await self._accounts.projects()]}

    async def change_project(self, call: Call) -> dict[str, Any]:
        project_id, enabled = call.path["account_id"], call.body.project.enabled
        await account_changes.set_project_enabled(call.services.database, project_id, enabled=enabled)
        return {"project": {"id": project_id, "enabled": enabled}}

    async def create_user(self, call: Call) -> dict[str, Any]:
        new: NewUser = call.body.user
        made = await self._accounts.on(call.services.database).create_user(
            name=new.name, password=new.password, project_id=new.project_id, role=new.role
        )
        return {"user": _user(made)}

    async def all_users(self, call: Call) -> dict[str, Any]:
        return {"users": [_user(u) for u in await self._accounts.users()]}

    async def change_user(self, call: Call) -> None:
        new: UserMembers = call.body.user
        if new.password is None and new.enabled is None and not new.log_out:
            raise InvalidRequest(reason="Invalid user: give password, enabled, or log_out.")
        await account_changes.change_user(
            call.services.database,
            self._passwords,
            call.path["user_id"],
            call.services.clock.now(),
            password=new.password,
            enabled=new.enabled,
            log_out=new.log_out,
        )
        self._callers.forget(call.path["user_id"])

    async def delete_user(self, call: Call) -> None:
        await account_changes.delete_user(call.services.database, call.path["user_id"])
        self._callers.forget(call.path["user_id"])

    async def roles(self, call: Call) -> dict[str, Any]:
        found = await account_changes.roles_of(call.services.database, call.path["user_id"])
        return {"roles": [{"role": r.role, "project_id": r.project_id, "project_name": r.project_name} for r in found]}

    async def give_role(self, call: Call) -> None:
        new: RoleMembers = call.body.role
        await account_changes.give_role(call.services.database, call.path["user_id"], new.role, new.project_id)
        self._callers.forget(call.path["user_id"])

    async def take_role(self, call: Call) -> None:
        old: RoleMembers = call.body.role
        await account_changes.take_role(call.services.database, call.path["user_id"], old.role, old.project_id)
        self._callers.forget(call.path["user_id"])

    async def create_key(self, call: Call) -> dict[str, Any]:
        """The secret is in this answer and nowhere else."""
        new: NewKey = call.body.key
        made = await self._accounts.on(call.services.database).create_access_key(new.user_id, new.duration_seconds)
        return {"key": _key(made, new.user_id)}

    async def all_keys(self, call: Call) -> dict[str, Any]:
        found = await self._accounts.access_keys()
        return {
            "keys": [
                {
                    "access_key": k.access_key,
                    "user_id": k.user_id,
                    "enabled": k.enabled,
                    "expires_at": k.expires_at.isoformat() if k.expires_at is not None else None,
                }
                for k in found
            ]
        }

    async def change_key(self, call: Call) -> None:
        await account_changes.set_key_enabled(
            call.services.database, call.path["access_key"], enabled=call.body.key.enabled
        )

    async def delete_key(self, call: Call) -> None:
        await self._accounts.on(call.services.database).delete_access_key(call.path["access_key"])

    async def change_token_key(self, call: Call) -> dict[str, Any]:
        """keys: how many open tokens now."""
        return {"token_key": {"keys": await self._keys.change(forget_old=call.body.token_key.forget_old)}}


def _domain(domain: AccountDomain) -> dict[str, Any]:
    return {"id": domain.id, "name": domain.name}


def _user(user: User) -> dict[str, Any]:
    return {"id": user.id, "name": user.name, "domain_id": user.domain_id, "enabled": user.enabled}


def _key(made: AccessKey, user_id: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"access_key": made.access_key, "secret_key": made.secret_key, "user_id": user_id}
    if made.security_token is not None and made.expires_at is not None:
        shown |= {"security_token": made.security_token, "expires_at": made.expires_at.isoformat()}
    return shown
