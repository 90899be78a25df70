"""Who calls, and which actions a role allows. Pure: no database, no clock.

Actions and roles are those of contract/identity.md section 6; actions marked as a suggestion there are ours.
"""

import functools
from dataclasses import dataclass

ROLE_OPERATOR = "admin"  # on the domain `default`: may use /ext/v1/admin and nothing of a tenant's data
ROLE_TENANT_ADMIN = "te_admin"
ROLE_FULL = "CBR FullAccess"
ROLE_NO_POLICIES = "CBR BackupsAndVaultsFullAccess"
ROLE_READER = "CBR ReadOnlyAccess"

ACTION_ADMIN = "strongroom:admin"  # everything under /ext/v1/admin
ACTION_AUDIT = "strongroom:audit:list"  # for who administers the project: it tells of all its users

READ_ACTIONS = frozenset(
    {
        "cbr:vaults:get",
        "cbr:vaults:list",
        "cbr:vaults:getTags",
        "cbr:vaults:listProjectTags",
        "cbr:vaults:listResourceInstances",
        "cbr:vaults:listProtectables",
        "cbr:vaults:getProtectables",
        "cbr:backups:get",
        "cbr:backups:list",
        "cbr:backups:getMetadata",
        "cbr:backups:queryReplicationCapability",
        "cbr:backups:checkAgent",
        "cbr:member:list",
        "cbr:member:get",
        "cbr:policies:list",
        "cbr:policies:get",
        "cbr:agents:list",
        "cbr:agents:get",
        "cbr:features:list",
        "cbr:features:get",
        "cbr:tasks:list",
        "cbr:tasks:get",
        "strongroom:events:get",
        "strongroom:quotas:get",
        "strongroom:notifications:list",
        "strongroom:entries:list",  # names inside a restore point; contents need download
    }
)
WRITE_ACTIONS = frozenset(
    {
        "cbr:vaults:create",
        "cbr:vaults:update",
        "cbr:vaults:delete",
        "cbr:vaults:addResources",
        "cbr:vaults:removeResources",
        "cbr:vaults:backup",
        "cbr:vaults:associatePolicy",
        "cbr:vaults:dissociatePolicy",
        "cbr:vaults:migrateResources",
        "cbr:vaults:replicate",
        "cbr:vaults:sync",
        "cbr:vaults:setTags",
        "cbr:vaults:bulkCreateOrDeleteTags",
        "cbr:vaults:deleteTags",
        "cbr:backups:update",
        "cbr:backups:delete",
        "cbr:backups:restore",
        "cbr:backups:replicate",
        "cbr:backups:sync",
        "cbr:member:create",
        "cbr:member:delete",
        "cbr:member:update",
        "cbr:agents:register",
        "cbr:agents:update",
        "cbr:agents:delete",
        "cbr:agents:addPath",
        "cbr:agents:removePath",
        "strongroom:entries:download",
        "strongroom:tasks:cancel",
        "strongroom:notifications:change",
        "strongroom:vaults:verify",
    }
)
POLICY_ACTIONS = frozenset({"cbr:policies:create", "cbr:policies:update", "cbr:policies:delete"})

ACTIONS_OF: dict[str, frozenset[str]] = {
    ROLE_OPERATOR: frozenset({ACTION_ADMIN}),
    ROLE_TENANT_ADMIN: READ_ACTIONS | WRITE_ACTIONS | POLICY_ACTIONS | {ACTION_AUDIT},
    ROLE_FULL: READ_ACTIONS | WRITE_ACTIONS | POLICY_ACTIONS,
    ROLE_NO_POLICIES: READ_ACTIONS | WRITE_ACTIONS,
    ROLE_READER: READ_ACTIONS,
}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """One authenticated caller, scoped to one project.

    project_id  32 hex digits; "" for an unscoped caller, who has no tenant's data
    roles       names of roles on that project, and `admin` when the user is an operator of the default domain
    region      name of another region whose server calls; "" for people: a region has no project and no role
    """

    user_id: str
    user_name: str
    domain_id: str
    domain_name: str
    project_id: str
    project_name: str
    roles: frozenset[str]
    region: str = ""


ANONYMOUS = Caller(
    user_id="", user_name="", domain_id="", domain_name="", project_id="", project_name="", roles=frozenset()
)


def administers_domain(caller: Caller) -> bool:
    """Whether the caller decides for all projects of their domain."""
    return ROLE_OPERATOR in caller.roles


@functools.lru_cache(maxsize=4096)  # sets of roles and actions there are few of, asked for with each request
def allowed(roles: frozenset[str], action: str) -> bool:
    """True when one of the roles includes the action. Unknown roles allow nothing."""
    return any(action in ACTIONS_OF.get(role, frozenset()) for role in roles)
