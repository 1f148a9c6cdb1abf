"""An MCP server of our own, called inside the process: no socket, no child, no state between calls."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import mcp
from agents import AgentBase, RunContextWrapper
from agents.mcp import MCPServer
from mcp.server.mcpserver import MCPServer as OwnServer
from mcp.types import CallToolResult, GetPromptResult, ListPromptsResult, Tool

from server.mcp_servers.caller import bind_caller, meta_of, take_caller
from server.mcp_servers.results import ToolFailedError, as_failure, bounded, kind_of

_MOST_CHARACTERS = 50_000

log = logging.getLogger(__name__)


class InProcessServer(MCPServer):
    """Tools of a server in this process. Each call has a session of its own, in under a millisecond.

    server: is told in a call's metadata for which user and on which thread it is.
    seconds: how long a call may take.
    """

    def __init__(self, name: str, server: OwnServer[Any], *, seconds: float = 30.0) -> None:
        super().__init__(failure_error_function=as_failure, tool_meta_resolver=bind_caller)
        self._name = name
        self._server = server
        self._seconds = seconds
        self._tools: list[Tool] | None = None

    @property
    def name(self) -> str:
        """Its name among the servers."""
        return self._name

    async def connect(self) -> None:
        """There is nothing to connect."""

    async def cleanup(self) -> None:
        """There is nothing to clean up."""

    async def list_tools(
        self, run_context: RunContextWrapper[Any] | None = None, agent: AgentBase[Any] | None = None
    ) -> list[Tool]:
        """Its tools, which never change."""
        if self._tools is None:
            async with mcp.Client(self._server, cache=None) as client:
                self._tools = (await client.list_tools()).tools
        return [tool.model_copy(deep=True) for tool in self._tools]

    async def call_tool(
        self, tool_name: str, arguments: dict[str, Any] | None, meta: dict[str, Any] | None = None
    ) -> CallToolResult:
        """What a tool gives. Raises ToolFailedError, which says for the model to read why it gave nothing."""
        caller, _ = take_caller(meta)
        if caller is None:
            raise ToolFailedError("These tools are there for users of ChatKit only.")
        try:
            async with asyncio.timeout(self._seconds), mcp.Client(self._server, cache=None) as client:
                result = await client.call_tool(tool_name, arguments, meta=meta_of(caller))
        except TimeoutError:
            raise ToolFailedError(f"{tool_name} took longer than {self._seconds:g} seconds.") from None
        except Exception as error:  # noqa: BLE001 # whatever it is, the answer goes on
            log.warning("a call of %s failed: %s", tool_name, kind_of(error))
            raise ToolFailedError(f"{tool_name} could not be called that way.") from None
        return bounded(result, _MOST_CHARACTERS)

    async def list_prompts(self) -> ListPromptsResult:
        """None."""
        return ListPromptsResult(prompts=[])

    async def get_prompt(self, name: str, arguments: dict[str, Any] | None = None) -> GetPromptResult:
        """Raises NotImplementedError."""
        raise NotImplementedError(f"there is no prompt {name!r}")
