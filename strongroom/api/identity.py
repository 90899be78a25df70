"""The Keystone-shaped calls that clients make before their first CBR call, and those with which a session ends.

Shapes are those of contract/identity.md sections 1 and 4. Errors of the /v3 paths here use the Keystone envelope.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from strongroom.api.authentication import TOKEN_HEADER, source_of
from strongroom.api.identity_answers import (
    CatalogAnswer,
    DomainsAnswer,
    ProjectsAnswer,
    TokenAnswer,
    VersionsAnswer,
)
from strongroom.api.operation import AUTHENTICATED, PUBLIC, Call, Handler, Operation
from strongroom.base.errors import Forbidden, InvalidRequest, Unsupported
from strongroom.control.accounts import Accounts, Project
from strongroom.control.callers import Callers, IssuedToken, Scope
from strongroom.control.logins import Login, Logins

SUBJECT_HEADER = "X-Subject-Token"
_OF_OUR_TOKENS = frozenset({"create_token", "show_token", "revoke_token", "change_password", "show_catalog"})


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


class NewPassword(msgspec.Struct, kw_only=True):
    original_password: str
    password: str


class PasswordRequest(msgspec.Struct, kw_only=True):
    user: NewPassword


# --- handlers -------------------------------------------------------------------------------------------------------


class IdentityApi:
    """Handlers that need the identity; made once, its `operations` join the table.

    endpoint   base URL as clients see it; None: taken from the Host header of each request
    tokens_of  URL of the Keystone whose tokens count here; None: ours do
    """

    def __init__(
        self,
        *,
        callers: Callers,
        logins: Logins,
        accounts: Accounts,
        region: str,
        endpoint: str | None,
        tokens_of: str | None = None,
    ) -> None:
        self._callers = callers
        self._logins = logins
        self._accounts = accounts
        self._region = region
        self._endpoint = endpoint
        self._tokens_of = tokens_of

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Rows of the table: versions, tokens, projects and domains."""
        by_name: dict[str, Any] = {"query": ProjectQuery, "answer": ProjectsAnswer}
        issue = {"body": TokenRequest, "status": 201, "answer": TokenAnswer, "audit": True}
        rows: tuple[tuple[str, str, str, str, Handler, dict[str, Any]], ...] = (
            ("create_token", "POST", "auth/tokens", PUBLIC, self.create_token, issue),
            ("show_token", "GET", "auth/tokens", AUTHENTICATED, self.show_token, {"answer": TokenAnswer}),
            ("revoke_token", "DELETE", "auth/tokens", AUTHENTICATED, self.revoke_token, {"status": 204, "audit": True}),
            (
                "change_password",
                "POST",
                "users/{user_id}/password",
                AUTHENTICATED,
                self.change_password,
                {"body": PasswordRequest, "status": 204, "audit": True},
            ),
            ("list_auth_projects", "GET", "auth/projects", AUTHENTICATED, self.projects, by_name),
            ("list_own_projects", "GET", "projects", AUTHENTICATED, self.projects, by_name),
            ("list_auth_domains", "GET", "auth/domains", AUTHENTICATED, self.domains, {"answer": DomainsAnswer}),
            ("show_catalog", "GET", "auth/catalog", AUTHENTICATED, self.catalog, {"answer": CatalogAnswer}),
        )
        versions = [
            Operation(
                name=name,
                method="GET",
                path=path,
                action=PUBLIC,
                handler=self.versions,
                status=300,
                answer=VersionsAnswer,
            )
            for name, path in (("list_api_versions", "/"), ("show_api_version_v3", "/v3"))
        ]
        keystone = [
            Operation(
                name=name,
                method=method,
                path=f"/v3/{path}",
                action=action,
                handler=self.elsewhere if self._tokens_of and name in _OF_OUR_TOKENS else handler,
                keystone=True,
                **more,
            )
            for name, method, path, action, handler, more in rows
        ]
        return (*versions, *keystone)

    async def elsewhere(self, call: Call) -> None:
        """Where another Keystone issues the tokens, ours are of no use."""
        raise Unsupported(reason=f"The tokens of this service are those of {self._tokens_of}. Ask there.")

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
            call.note.user_name = user.name or user.id or ""
            issued = await self._logins.log_in(login, scope, source_of(call.request))
        elif auth.identity.methods == ["token"] and auth.identity.token is not None:
            issued = await self._callers.exchange_token(auth.identity.token.id, scope)
        else:
            raise Unsupported(reason='auth.identity.methods must be ["password"] or ["token"], with its member.')
        call.note.user_id, call.note.user_name = issued.caller.user_id, issued.caller.user_name
        call.note.project_id = issued.caller.project_id
        body = msgspec.json.encode(self._token_body(call.request, issued))
        return Response(body, 201, {SUBJECT_HEADER: issued.text}, media_type="application/json")

    async def show_token(self, call: Call) -> dict[str, Any]:
        """What a token says; only its owner may ask."""
        return self._token_body(call.request, await self._callers.inspect_token(_subject(call.request), call.caller))

    async def revoke_token(self, call: Call) -> None:
        """The token of X-Subject-Token is void; its owner's doing, or an operator's."""
        await self._callers.revoke_token(_subject(call.request), call.caller)

    async def change_password(self, call: Call) -> None:
        """One's own, with the old one in hand; every token of before is void."""
        if call.path["user_id"] != call.caller.user_id:
            raise Forbidden(reason="A password is changed by its user, or by an operator under /ext/v1/admin/users.")
        new: NewPassword = call.body.user
        await self._logins.change_password(call.caller, new.original_password, new.password, source_of(call.request))

    async def projects(self, call: Call) -> dict[str, Any]:
        """The caller's projects; the SDK looks one up by the name of its region."""
        found = await self._accounts.projects_of(call.caller.user_id, call.query.name)
        return {"projects": [project_view(p, self._base(call.request)) for p in found], "links": {}}

    async def domains(self, call: Call) -> dict[str, Any]:
        """The caller's domain, in a list."""
        found = await self._accounts.domains_of(call.caller.user_id)
        return {"domains": [{"id": d.id, "name": d.name, "enabled": True} for d in found], "links": {}}

    async def catalog(self, call: Call) -> dict[str, Any]:
        return {"catalog": self._catalog(call.request, call.caller.project_id), "links": {}}

    # --- shapes -----------------------------------------------------------------------------------------------------

    def _base(self, request: Request) -> str:
        return base_url(self._endpoint, request)

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
            "audit_ids": [issued.audit_id],
            "issued_at": _keystone_time(issued.issued_at),
            "expires_at": _keystone_time(issued.expires_at),
            "user": {"id": caller.user_id, "name": caller.user_name, "domain": domain},
        }
        if caller.project_id:
            token["project"] = {"id": caller.project_id, "name": caller.project_name, "domain": domain}
            token["roles"] = [{"id": role, "name": role} for role in sorted(caller.roles)]
            token["catalog"] = self._catalog(request, caller.project_id)
        return {"token": token}


def base_url(endpoint: str | None, request: Request) -> str:
    """Where clients reach this API: as configured, else as this one did."""
    return endpoint or f"{request.url.scheme}://{request.headers.get('host', request.url.netloc)}"


def _subject(request: Request) -> str:
    """The token that a call is about: X-Subject-Token, else the one it is made with."""
    text = request.headers.get(SUBJECT_HEADER) or request.headers.get(TOKEN_HEADER)
    if text is None:
        raise InvalidRequest(reason=f"The header {SUBJECT_HEADER} is missing.")
    return text


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


def project_view(project: Project, base: str) -> dict[str, Any]:
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
