"""All MCP servers of an assistant: opened and closed together, apart from each other otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from agents.agent import MCPConfig
from agents.mcp import MCPServer
from chatkit_grpc.services import MCP_PREFIX

from server.mcp_servers.plugged import PluggedServer
from server.mcp_servers.settings import ServerSettings
from server.mcp_servers.supervisor import DEFAULT_RHYTHM, Rhythm, Supervisor


class McpServers:
    """What an agent gets tools from.

    settings: the operator's servers, by their names. own: servers that need no connecting.
    An agent takes `agent_options()`: `Agent(…, **servers.agent_options())`.
    """

    def __init__(
        self,
        settings: Mapping[str, ServerSettings] | None = None,
        own: Sequence[MCPServer] = (),
        rhythm: Rhythm = DEFAULT_RHYTHM,
    ) -> None:
        self._plugged = [PluggedServer(name, server) for name, server in (settings or {}).items()]
        self._own = list(own)
        self._supervisors = [Supervisor(server, rhythm) for server in self._plugged]

    def agent_options(self) -> dict[str, Any]:
        """What makes an agent use the servers. Their tools are called mcp_SERVER__TOOL, so that none hides another."""
        servers: list[MCPServer] = [*self._own, *self._plugged]
        return {"mcp_servers": servers, "mcp_config": MCPConfig(include_server_in_tool_names=True)}

    @property
    def passes_authorization(self) -> bool:
        """Whether some server is called with users' own tokens."""
        return any(server.settings.passes_authorization for server in self._plugged)

    def health_of_parts(self) -> dict[str, bool]:
        """Of each of the operator's servers whether its tools are there."""
        return {f"{MCP_PREFIX}{server.name}": server.is_up for server in self._plugged}

    async def aopen(self) -> None:
        """Begin to connect all. Returns at once."""
        for supervisor in self._supervisors:
            await supervisor.__aenter__()

    async def aclose(self) -> None:
        """Disconnect all; what runs as a child process has ended then."""
        await asyncio.gather(*(supervisor.__aexit__(None, None, None) for supervisor in self._supervisors))
