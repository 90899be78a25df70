"""Projects and domains under /v3 as CBR's clients ask for them, and the migration of a domain that has nothing to move.

`/v3/migrates` brings backups of the services before CBR into it. There was none here, so every project is as it is
afterwards from the beginning: asking for it changes nothing, and says so at once.
"""

from typing import Any

import msgspec

from strongroom.api.identity import base_url
from strongroom.api.operation import AUTHENTICATED, Call, Operation
from strongroom.base.errors import InvalidRequest
from strongroom.base.ids import is_hex_id
from strongroom.control import projects
from strongroom.control.projects import SeenProject

MIGRATED = "success"  # of the published migrating, success, failed


class MigrateStatusQuery(msgspec.Struct):
    """all_regions: there is one here, so both values ask for the same."""

    all_regions: bool | None = None


class MigrateBody(msgspec.Struct):
    """reservation: spare room for what would come, as a share."""

    all_regions: bool
    reservation: float


async def list_projects(call: Call) -> dict[str, Any]:
    """The caller's projects, in Keystone's shape."""
    base = f"{base_url(call.services.endpoint, call.request)}/v3"
    found = await projects.list_seen(call.services.database, call.caller)
    return {
        "projects": [
            {
                "id": project.id,
                "name": project.name,
                "description": project.description,
                "domain_id": project.domain_id,
                "parent_id": project.domain_id,
                "is_domain": False,
                "enabled": project.enabled,
                "links": {"self": f"{base}/projects/{project.id}"},
            }
            for project in found
        ],
        "links": {"self": f"{base}/region-projects"},
    }


async def list_domain_projects(call: Call) -> dict[str, Any]:
    found = await projects.list_of_domain(call.services.database, call.caller, call.path["domain_name"])
    return {"projects": [{"project_id": project.id, "project_name": project.name} for project in found]}


async def show_domain(call: Call) -> dict[str, Any]:
    """The domain that a project belongs to."""
    project_id = call.path["source_project_id"]
    if not is_hex_id(project_id):
        raise InvalidRequest(reason="Invalid source_project_id provided.")
    found = await projects.show_seen(call.services.database, call.caller, project_id)
    return {
        "project_id": found.id,
        "project_name": found.name,
        "domain_id": found.domain_id,
        "domain_name": found.domain_name,
    }


async def show_migrate_status(call: Call) -> dict[str, Any]:
    return {
        "status": MIGRATED,
        "project_status": [
            {
                "project_id": project.id,
                "project_name": project.name,
                "region_id": call.services.region,
                "status": MIGRATED,
                "progress": 100,
                "fail_code": 0,
                "fail_reason": "",
            }
            for project in await _migrated(call)
        ],
    }


async def migrate_domain(call: Call) -> dict[str, str]:
    """What each of the caller's projects is at: done, before it began."""
    if not 0 <= call.body.reservation <= 1:
        raise InvalidRequest(reason="Invalid reservation: give a share from 0 to 1.")
    return {project.id: MIGRATED for project in await _migrated(call)}


async def _migrated(call: Call) -> list[SeenProject]:
    return await projects.list_seen(call.services.database, call.caller)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="list_projects",
        method="GET",
        path="/v3/region-projects",
        action=AUTHENTICATED,
        handler=list_projects,
    ),
    Operation(
        name="list_domain_projects",
        method="GET",
        path="/v3/domain/{domain_name}/projects",
        action=AUTHENTICATED,
        handler=list_domain_projects,
    ),
    Operation(
        name="show_domain",
        method="GET",
        path="/v3/domain/{source_project_id}",
        action=AUTHENTICATED,
        handler=show_domain,
    ),
    Operation(
        name="show_migrate_status",
        method="GET",
        path="/v3/migrates",
        action="cbr:vaults:get",
        handler=show_migrate_status,
        query=MigrateStatusQuery,
    ),
    Operation(
        name="migrate_domain",
        method="POST",
        path="/v3/migrates",
        action="cbr:vaults:update",
        handler=migrate_domain,
        body=MigrateBody,
    ),
)
