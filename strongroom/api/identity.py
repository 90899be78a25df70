"""The Keystone-shaped calls that clients make before their first CBR call, and the operator's accounts under /ext.

Shapes are those of contract/identity.md sections 1 and 4. Errors of the /v3 paths here use the Keystone envelope.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from strongroom.api.authentication import TOKEN_HEADER
from strongroom.api.operation import AUTHENTICATED, PUBLIC, Call, Operation
from strongroom.base.errors import InvalidRequest, Unauthenticated, Unsupported
from strongroom.control.access import ACTION_ADMIN, ROLE_TENANT_ADMIN
from strongroom.control.accounts import Accounts, Project, User
from strongroom.control.callers import Callers, IssuedToken, Login, Scope

SUBJECT_HEADER = "X-Subject-Token"


# --- what clients send ----------------------------------------------------------------------------------------------


class DomainName(msgspec.Struct, kw_only=True):
    id: str | None = None
    name: str | None = None


class LoginUser(msgspec.Struct, kw_only=True):
    id: str | None = None
    name: str | None = None
    password: str
    domain: DomainName | None = None


class PasswordMethod(msgspec.Struct, kw_only=True):
    user: LoginUser


class TokenMethod(msgspec.Struct, kw_only=True):
    id: str


class IdentityMember(msgspec.Struct, kw_only=True):
    methods: list[str]
    password: PasswordMethod | None = None
    token: TokenMethod | None = None


class ScopeProject(msgspec.Struct, kw_only=True):
    id: str | None = None
    name: str | None = None
    domain: DomainName | None = None


class ScopeMember(msgspec.Struct, kw_only=True):
    project: ScopeProject | None = None
    domain: DomainName | None = None


class AuthMember(msgspec.Struct, kw_only=True):
    identity: IdentityMember
    scope: ScopeMember | str | None = None  # the text "unscoped" is Keystone's


class TokenRequest(msgspec.Struct, kw_only=True):
    auth: AuthMember


class ProjectQuery(msgspec.Struct, kw_only=True):
    name: str | None = None


class NewProject(msgspec.Struct, kw_only=True):
    name: str
    description: str = ""


class ProjectRequest(msgspec.Struct, kw_only=True):
    project: NewProject


class NewUser(msgspec.Struct, kw_only=True):
    name: str
    password: str
    project_id: str = ""
    role: str = ROLE_TENANT_ADMIN


class UserRequest(msgspec.Struct, kw_only=True):
    user: NewUser


class NewKey(msgspec.Struct, kw_only=True):
    user_id: str


class KeyRequest(msgspec.Struct, kw_only=True):
    key: NewKey


# --- handlers -------------------------------------------------------------------------------------------------------


class IdentityApi:
    """Handlers that need the identity; made once, its `operations` join the table.

    endpoint  base URL as clients see it; None: taken from the Host header of each request
    """

    def __init__(self, *, callers: Callers, accounts: Accounts, region: str, endpoint: str | None) -> None:
        self._callers = callers
        self._accounts = accounts
        self._region = region
        self._endpoint = endpoint

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Rows of the table: versions, tokens, projects and domains, accounts of operators."""
        versions = [
            Operation(name=name, method="GET", path=path, action=PUBLIC, handler=self.versions, status=300)
            for name, path in (("list_api_versions", "/"), ("show_api_version_v3", "/v3"))
        ]
        keystone = [
            Operation(name=name, method=method, path=path, action=action, handler=handler, keystone=True, **more)
            for name, method, path, action, handler, more in (
                ("create_token", "POST", "/v3/auth/tokens", PUBLIC, self.create_token, {"body": TokenRequest}),
                ("show_token", "GET", "/v3/auth/tokens", AUTHENTICATED, self.show_token, {}),
                (
                    "list_auth_projects",
                    "GET",
                    "/v3/auth/projects",
                    AUTHENTICATED,
                    self.projects,
                    {"query": ProjectQuery},
                ),
                ("list_own_projects", "GET", "/v3/projects", AUTHENTICATED, self.projects, {"query": ProjectQuery}),
                ("list_auth_domains", "GET", "/v3/auth/domains", AUTHENTICATED, self.domains, {}),
                ("show_catalog", "GET", "/v3/auth/catalog", AUTHENTICATED, self.catalog, {}),
            )
        ]
        admin = [
            Operation(
                name=name, method=method, path=f"/ext/v1/admin/{path}", action=ACTION_ADMIN, handler=handler, **more
            )
            for name, method, path, handler, more in (
                (
                    "admin_create_project",
                    "POST",
                    "projects",
                    self.create_project,
                    {"body": ProjectRequest, "status": 201},
                ),
                ("admin_list_projects", "GET", "projects", self.all_projects, {}),
                ("admin_create_user", "POST", "users", self.create_user, {"body": UserRequest, "status": 201}),
                ("admin_list_users", "GET", "users", self.all_users, {}),
                ("admin_create_key", "POST", "keys", self.create_key, {"body": KeyRequest, "status": 201}),
                ("admin_list_keys", "GET", "keys", self.all_keys, {}),
                ("admin_delete_key", "DELETE", "keys/{access_key}", self.delete_key, {"status": 204}),
            )
        ]
        return (*versions, *keystone, *admin)

    async def versions(self, call: Call) -> dict[str, Any]:
        """300 with the one version; keystoneauth takes it for its discovery too."""
        base = self._base(call.request)
        version = {
            "id": "v3",
            "status": "CURRENT",
            "version": "",
            "min_version": "",
            "updated": "2026-11-23T00:00:00Z",
            "links": [{"href": f"{base}/v3", "rel": "self"}],
        }
        return {"versions": [version]}

    async def create_token(self, call: Call) -> Response:
        """201 with the token in X-Subject-Token. Methods `password` and `token`."""
        auth: AuthMember = call.body.auth
        scope = _scope(auth.scope)
        if auth.identity.methods == ["password"] and auth.identity.password is not None:
            user = auth.identity.password.user
            domain = user.domain or DomainName()
            login = Login(
                password=user.password,
                user_id=user.id,
                user_name=user.name,
                domain_id=domain.id,
                domain_name=domain.name,
            )
            issued = await self._callers.log_in(login, scope)
        elif auth.identity.methods == ["token"] and auth.identity.token is not None:
            issued = await self._callers.exchange_token(auth.identity.token.id, scope)
        else:
            raise Unsupported(reason='auth.identity.methods must be ["password"] or ["token"], with its member.')
        body = msgspec.json.encode(self._token_body(call.request, issued))
        return Response(body, 201, {SUBJECT_HEADER: issued.text}, media_type="application/json")

    async def show_token(self, call: Call) -> dict[str, Any]:
        """What a token says; only its owner may ask."""
        text = call.request.headers.get(SUBJECT_HEADER) or call.request.headers.get(TOKEN_HEADER)
        if text is None:
            raise InvalidRequest(reason=f"The header {SUBJECT_HEADER} is missing.")
        issued = await self._callers.inspect_token(text)
        if issued.caller.user_id != call.caller.user_id:
            raise Unauthenticated(reason="the token is of another user")
        return self._token_body(call.request, issued)

    async def projects(self, call: Call) -> dict[str, Any]:
        """The caller's projects; the SDK looks one up by the name of its region."""
        found = await self._accounts.projects_of(call.caller.user_id, call.query.name)
        return {"projects": [_project(p, self._base(call.request)) for p in found], "links": {}}

    async def domains(self, call: Call) -> dict[str, Any]:
        """The caller's domain, in a list."""
        found = await self._accounts.domains_of(call.caller.user_id)
        return {"domains": [{"id": d.id, "name": d.name, "enabled": True} for d in found], "links": {}}

    async def catalog(self, call: Call) -> dict[str, Any]:
        return {"catalog": self._catalog(call.request, call.caller.project_id), "links": {}}

    async def create_project(self, call: Call) -> dict[str, Any]:
        made = await self._accounts.create_project(call.body.project.name, call.body.project.description)
        return {"project": _project(made, self._base(call.request))}

    async def all_projects(self, call: Call) -> dict[str, Any]:
        return {"projects": [_project(p, self._base(call.request)) for p in await self._accounts.projects()]}

    async def create_user(self, call: Call) -> dict[str, Any]:
        new: NewUser = call.body.user
        made = await self._accounts.create_user(
            name=new.name, password=new.password, project_id=new.project_id, role=new.role
        )
        return {"user": _user(made)}

    async def all_users(self, call: Call) -> dict[str, Any]:
        return {"users": [_user(u) for u in await self._accounts.users()]}

    async def create_key(self, call: Call) -> dict[str, Any]:
        """The secret is in this answer and nowhere else."""
        made = await self._accounts.create_access_key(call.body.key.user_id)
        key = {"access_key": made.access_key, "secret_key": made.secret_key, "user_id": call.body.key.user_id}
        return {"key": key}

    async def all_keys(self, call: Call) -> dict[str, Any]:
        found = await self._accounts.access_keys()
        return {"keys": [{"access_key": k.access_key, "user_id": k.user_id, "enabled": k.enabled} for k in found]}

    async def delete_key(self, call: Call) -> None:
        await self._accounts.delete_access_key(call.path["access_key"])

    # --- shapes -----------------------------------------------------------------------------------------------------

    def _base(self, request: Request) -> str:
        return self._endpoint or f"{request.url.scheme}://{request.headers.get('host', request.url.netloc)}"

    def _catalog(self, request: Request, project_id: str) -> list[dict[str, Any]]:
        """`cbr` ends with the project: gophertelekomcloud appends resource names to it as it is."""
        base = self._base(request)

        def service(kind: str, name: str, url: str) -> dict[str, Any]:
            place = {"region": self._region, "region_id": self._region}
            endpoint = {"id": f"{kind}-public", "interface": "public", "url": url, **place}
            return {"type": kind, "name": name, "id": kind, "endpoints": [endpoint]}

        services = [service("identity", "keystone", f"{base}/v3")]
        if project_id:
            services.append(service("cbr", "cbr", f"{base}/v3/{project_id}"))
        return services

    def _token_body(self, request: Request, issued: IssuedToken) -> dict[str, Any]:
        caller = issued.caller
        domain = {"id": caller.domain_id, "name": caller.domain_name}
        token: dict[str, Any] = {
            "methods": list(issued.methods),
            "issued_at": _keystone_time(issued.issued_at),
            "expires_at": _keystone_time(issued.expires_at),
            "user": {"id": caller.user_id, "name": caller.user_name, "domain": domain},
        }
        if caller.project_id:
            token["project"] = {"id": caller.project_id, "name": caller.project_name, "domain": domain}
            token["roles"] = [{"id": role, "name": role} for role in sorted(caller.roles)]
            token["catalog"] = self._catalog(request, caller.project_id)
        return {"token": token}


def _scope(member: ScopeMember | str | None) -> Scope | None:
    if member is None:
        return None
    if isinstance(member, str):
        if member != "unscoped":
            raise InvalidRequest(reason='auth.scope must be an object with project or domain, or "unscoped".')
        return Scope()
    if member.project is None:
        return Scope(domain_id=member.domain.id, domain_name=member.domain.name) if member.domain else Scope()
    domain = member.project.domain or DomainName()
    return Scope(
        project_id=member.project.id,
        project_name=member.project.name,
        domain_id=domain.id,
        domain_name=domain.name,
    )


def _keystone_time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _project(project: Project, base: str) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "description": project.description,
        "domain_id": project.domain_id,
        "parent_id": project.domain_id,
        "is_domain": False,
        "enabled": project.enabled,
        "links": {"self": f"{base}/v3/projects/{project.id}"},
    }


def _user(user: User) -> dict[str, Any]:
    return {"id": user.id, "name": user.name, "domain_id": user.domain_id, "enabled": user.enabled}
