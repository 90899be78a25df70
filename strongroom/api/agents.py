"""Agents on the wire: hosts, their paths, and whether a program is there."""

import json
from typing import Any, Literal

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Unsupported
from strongroom.control import agents
from strongroom.control.agents import Agent, NewAgent


class RegisteredAgent(msgspec.Struct):
    agent_id: str
    host_name: str
    host_ip: str
    host_os: str
    host_nickname: str | None = None
    agent_version: str | None = None
    agent_type: str | None = None


class RegisterAgent(msgspec.Struct):
    agent: RegisteredAgent


class AgentStatus(msgspec.Struct):
    status: Literal["uninstall"]


class UpdateAgent(msgspec.Struct):
    agent: AgentStatus


class ListAgentQuery(msgspec.Struct):
    limit: int | None = None
    offset: int | None = None
    status: str | None = None
    agent_id: list[str] | None = None


class ExcludePath(msgspec.Struct):
    path_name: str
    exclude_path_name: list[str]


class AddPath(msgspec.Struct):
    add_path: list[str]
    exclude_path: list[ExcludePath] | None = None


class RemovePath(msgspec.Struct):
    remove_path: list[str]


class CheckedResource(msgspec.Struct):
    resource_id: str
    resource_type: str
    resource_name: str | None = None


class CheckAgent(msgspec.Struct):
    agent_status: list[CheckedResource]


class NewEnrolment(msgspec.Struct):
    """resource_type: what the host becomes with its enrolment."""

    resource_type: Literal["OS::Native::Server", "OS::Ironic::BareMetalServer"] = "OS::Native::Server"


class EnrolmentToken(msgspec.Struct):
    """Counts once, until expires_at. server: HOST:PORT that the host dials."""

    token: str
    expires_at: str
    server: str


class EnrolmentAnswer(msgspec.Struct):
    enrolment: EnrolmentToken


async def new_enrolment(call: Call) -> EnrolmentAnswer:
    """Who has the answer can become this host: it is shown once, and kept nowhere."""
    new_token = call.services.new_agent_token
    if new_token is None:
        raise Unsupported(reason="Agents cannot dial this server. Its operator sets agent_listen (docs/AGENT.md).")
    token, ends, server = await new_token(call.project_id, call.path["agent_id"], call.body.resource_type)
    return EnrolmentAnswer(enrolment=EnrolmentToken(token=token, expires_at=api_timestamp(ends), server=server))


async def register_agent(call: Call) -> dict[str, Any]:
    asked: RegisteredAgent = call.body.agent
    new = NewAgent(
        id=asked.agent_id,
        host_name=asked.host_name,
        host_ip=asked.host_ip,
        host_os=asked.host_os,
        host_nickname=asked.host_nickname,
        agent_version=asked.agent_version,
        agent_type=asked.agent_type,
    )
    return {
        "agent": wire_agent(await agents.register(call.services.database, call.project_id, new, call.services.clock))
    }


async def list_agent(call: Call) -> dict[str, Any]:
    query: ListAgentQuery = call.query
    page = page_of(query.limit, query.offset, None)
    found, count = await agents.list_agents(
        call.services.database, call.project_id, page, ids=query.agent_id or (), status=query.status or None
    )
    return {
        "agents": [wire_agent(agent) for agent in found],
        "count": count,
        "limit": page.limit,
        "offset": page.offset,
    }


async def show_agent(call: Call) -> dict[str, Any]:
    return {"agent": wire_agent(await agents.show(call.services.database, call.project_id, call.path["agent_id"]))}


async def update_agent(call: Call) -> dict[str, Any]:
    changed = await agents.uninstall(
        call.services.database, call.project_id, call.path["agent_id"], call.services.clock
    )
    return {"agent": wire_agent(changed)}


async def unregister_agent(call: Call) -> None:
    await agents.unregister(
        call.services.database, call.project_id, call.path["agent_id"], call.request_id, call.services.clock
    )


async def add_agent_path(call: Call) -> dict[str, Any]:
    body: AddPath = call.body
    added, existed = await agents.add_paths(
        call.services.database,
        call.project_id,
        call.path["agent_id"],
        body.add_path,
        [(exclude.path_name, exclude.exclude_path_name) for exclude in body.exclude_path or ()],
        call.services.clock,
    )
    return {"added": added, "existed": existed}


async def remove_agent_path(call: Call) -> dict[str, Any]:
    removed, missing = await agents.remove_paths(
        call.services.database,
        call.project_id,
        call.path["agent_id"],
        call.body.remove_path,
        call.services.clock,
    )
    return {"removed": removed, "not_existed": missing}


async def check_agent(call: Call) -> dict[str, Any]:
    asked = [(resource.resource_id, resource.resource_type) for resource in call.body.agent_status]
    return {
        "agent_status": [
            {
                "resource_id": checked.resource_id,
                "installed": checked.installed,
                "code": checked.code,
                "message": checked.message,
                "version": checked.version,
                "is_old": None,  # no agent has been released that another could be older than
            }
            for checked in await agents.check(call.services.database, call.project_id, asked)
        ]
    }


def wire_agent(agent: Agent) -> dict[str, Any]:
    """The published shape. exclude_paths is one text there: ours is a JSON list, for a path may hold any separator."""
    return {
        "agent_id": agent.id,
        "agent_type": agent.agent_type,
        "agent_version": agent.agent_version,
        "host_name": agent.host_name,
        "host_nickname": agent.host_nickname,
        "host_ip": agent.host_ip,
        "host_os": agent.host_os,
        "status": agent.status,
        "last_active_time": None if agent.last_active_at is None else api_timestamp(agent.last_active_at),
        "created_at": api_timestamp(agent.created_at),
        "updated_at": None if agent.updated_at is None else api_timestamp(agent.updated_at),
        "paths": [
            {
                "id": path.id,
                "agent_id": agent.id,
                "dir_path": path.path,
                "exclude_paths": json.dumps(path.excluded, ensure_ascii=False),
                "status": "available",
            }
            for path in agent.paths
        ],
    }


_AGENTS = "/v3/{project_id}/agents"
_AGENT = _AGENTS + "/{agent_id}"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="new_agent_enrolment",
        method="POST",
        path="/ext/v1/{project_id}/agents/{agent_id}/enrolments",
        action="cbr:agents:register",
        handler=new_enrolment,
        body=NewEnrolment,
        answer=EnrolmentAnswer,
        status=201,
    ),
    Operation(
        name="check_agent",
        method="POST",
        path="/v3/{project_id}/agent/check",
        action="cbr:backups:checkAgent",
        handler=check_agent,
        body=CheckAgent,
    ),
    Operation(
        name="list_agent",
        method="GET",
        path=_AGENTS,
        action="cbr:agents:list",
        handler=list_agent,
        query=ListAgentQuery,
    ),
    Operation(
        name="register_agent",
        method="POST",
        path=_AGENTS,
        action="cbr:agents:register",
        handler=register_agent,
        body=RegisterAgent,
    ),
    Operation(name="show_agent", method="GET", path=_AGENT, action="cbr:agents:get", handler=show_agent),
    Operation(
        name="update_agent",
        method="PUT",
        path=_AGENT,
        action="cbr:agents:update",
        handler=update_agent,
        body=UpdateAgent,
    ),
    Operation(
        name="unregister_agent", method="DELETE", path=_AGENT, action="cbr:agents:delete", handler=unregister_agent
    ),
    Operation(
        name="add_agent_path",
        method="POST",
        path=_AGENT + "/add-path",
        action="cbr:agents:addPath",
        handler=add_agent_path,
        body=AddPath,
    ),
    Operation(
        name="remove_agent_path",
        method="POST",
        path=_AGENT + "/remove-path",
        action="cbr:agents:removePath",
        handler=remove_agent_path,
        body=RemovePath,
    ),
)
