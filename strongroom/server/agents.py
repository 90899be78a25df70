"""The port that agents dial, in a process that runs jobs: only there is somebody who asks them for anything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from strongroom.api.services import NewAgentToken
from strongroom.control.agent_identity import load_authority, new_token
from strongroom.control.tokens import Ring
from strongroom.operations.agent_listener import AgentListener
from strongroom.operations.portal import Portal
from strongroom.server.parts import Parts

FOLDER = "agents"  # in the state folder: the certificate of the port, made anew by every start


@asynccontextmanager
async def agents_port(parts: Parts) -> AsyncIterator[None]:
    """Listen while the block runs, if the settings say where. Raises ConfigError."""
    settings = parts.settings
    if settings.agent_listen is None:
        yield
        return
    tools = parts.tools(parts.database, Portal(asyncio.get_running_loop()))
    listener = AgentListener(
        address=(settings.agent_listen.host, settings.agent_listen.port),
        group=settings.worker_group,
        tools=tools,
        authority=await load_authority(parts.database, _ring(parts), parts.clock),
    )
    await asyncio.to_thread(listener.start, settings.state_dir / FOLDER)
    try:
        yield
    finally:
        await asyncio.to_thread(listener.stop)


def agent_tokens(parts: Parts) -> NewAgentToken | None:
    """What makes one-time tokens; None where no agent can dial this installation."""
    settings = parts.settings
    address = settings.agent_endpoint or settings.agent_listen
    if address is None:
        return None

    async def make(project_id: str, agent_id: str, resource_type: str) -> tuple[str, datetime, str]:
        authority = await load_authority(parts.database, _ring(parts), parts.clock)
        token, ends = await new_token(
            parts.database, project_id, agent_id, authority.certificate, parts.clock, resource_type
        )
        return token, ends, str(address)

    return make


def _ring(parts: Parts) -> Ring:
    return Ring([parts.settings.master_key_file.read_bytes()])
