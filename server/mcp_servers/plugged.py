"""An MCP server as an agent sees it: a list of tools that is there at once, and calls that end in time.

Of the Agents SDK's own servers none is used. MCPServerStreamableHttp lets one call through after another, so that a
slow call of one user would hold up all others; MCPServerStdio reads lines of any length; and both ask the server anew
for its tools, or never again.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from agents import AgentBase, RunContextWrapper
from agents.mcp import MCPServer
from mcp.client.session import IncomingMessage
from mcp.shared.exceptions import MCPError
from mcp.types import (
    CONNECTION_CLOSED,
    CallToolResult,
    GetPromptResult,
    ListPromptsResult,
    Tool,
    ToolListChangedNotification,
)

from server.mcp_servers.caller import Caller, bind_caller, meta_of, take_caller
from server.mcp_servers.child import Streams, run_child
from server.mcp_servers.connection import Connection
from server.mcp_servers.http import open_http
from server.mcp_servers.offered_tools import offered
from server.mcp_servers.results import ToolFailedError, as_failure, bounded, kind_of
from server.mcp_servers.settings import ChildSettings, ServerSettings

log = logging.getLogger(__name__)


class PluggedServer(MCPServer):
    """A server of the operator's file. While it isn't connected it has no tools, and keeps nobody waiting.

    `doubt` is set where something speaks against its being well; supervisor.py looks at it then.
    """

    def __init__(self, name: str, settings: ServerSettings) -> None:
        super().__init__(
            failure_error_function=as_failure,
            tool_meta_resolver=partial(bind_caller, with_token=settings.passes_authorization),
        )
        self.settings = settings
        self.doubt = asyncio.Event()
        self._name = name
        self._connection: Connection | None = None
        self._tools: list[Tool] = []
        self._seen: list[Tool] = []
        self._chosen: list[Tool] = []
        self._farewells: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """The name in the operator's file."""
        return self._name

    @property
    def is_up(self) -> bool:
        """Whether it is connected, and its tools are offered."""
        return self._connection is not None

    async def connect(self) -> None:
        """Connect, and learn which tools there are. Raises whatever may go wrong with that."""
        self.doubt.clear()
        connection = Connection(self._open_streams, on_message=self._hear, on_end=self.doubt.set)
        await connection.open()
        try:
            self._tools = await self._listed(connection)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection

    async def refresh(self) -> None:
        """Learn anew which tools there are. Raises whatever may go wrong with that."""
        if self._connection is None:
            raise ConnectionError("not connected")
        self._tools = await self._listed(self._connection)

    async def cleanup(self) -> None:
        """Offer no tools any more, and disconnect."""
        connection, self._connection, self._tools = self._connection, None, []
        if connection is not None:
            await connection.close()
        if self._farewells:
            await asyncio.wait(self._farewells)

    async def list_tools(
        self, run_context: RunContextWrapper[Any] | None = None, agent: AgentBase[Any] | None = None
    ) -> list[Tool]:
        """The tools that were last seen; none while it isn't connected. The Agents SDK may change what it gets."""
        return [tool.model_copy(deep=True) for tool in self._tools]

    @property
    def cached_tools(self) -> list[Tool] | None:
        """The same."""
        return self._tools

    async def call_tool(
        self, tool_name: str, arguments: dict[str, Any] | None, meta: dict[str, Any] | None = None
    ) -> CallToolResult:
        """What a tool gives, bounded. Raises ToolFailedError, which says for the model to read why it gave nothing."""
        caller, wire_meta = take_caller(meta)
        if self.settings.forward_user and caller is not None:
            wire_meta |= meta_of(caller)
        # What was offered when the turn began may be gone, and what was never offered is never called.
        if all(tool.name != tool_name for tool in self._tools):
            raise ToolFailedError(f'The tools of "{self._name}" are not there for now. Go on without them.')
        seconds = self.settings.call_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                result = await self._call(caller, tool_name, arguments or {}, wire_meta)
        except TimeoutError:
            self.doubt.set()
            raise ToolFailedError(f'"{self._name}" did not answer within {seconds:g} seconds.') from None
        except ToolFailedError:
            raise
        except Exception as error:  # noqa: BLE001 # whatever a server makes of it, the answer goes on
            self.doubt.set()
            raise self._failure(error) from None
        return bounded(result, self.settings.max_result_characters)

    def _failure(self, error: Exception) -> ToolFailedError:
        if isinstance(error, MCPError) and error.code != CONNECTION_CLOSED:
            return ToolFailedError(f'"{self._name}" refused the call: {error.message[:1000]}')
        log.warning("a call of the MCP server %s failed: %s", self._name, kind_of(error))
        return ToolFailedError(f'"{self._name}" broke off during the call. It may have been done or not.')

    async def _call(
        self, caller: Caller | None, tool_name: str, arguments: dict[str, Any], meta: dict[str, Any]
    ) -> CallToolResult:
        if not self.settings.passes_authorization:
            if self._connection is None:
                raise ConnectionError("not connected")
            return await self._connection.call_tool(tool_name, arguments, meta)
        if caller is None or caller.authorization is None:
            raise ToolFailedError(f'"{self._name}" can only be called for users who log in with a token.')
        # A connection of the user's own: what a server remembers of one user in a session is never seen by another.
        connection = Connection(partial(self._open_streams, caller.authorization))
        await connection.open()
        try:
            return await connection.call_tool(tool_name, arguments, meta)
        finally:
            # What the tool gave doesn't wait for a farewell.
            closing = asyncio.create_task(connection.close(), name="farewell of an MCP session")
            self._farewells.add(closing)
            closing.add_done_callback(self._farewells.discard)

    def _open_streams(self, authorization: str | None = None) -> AbstractAsyncContextManager[Streams]:
        if isinstance(self.settings, ChildSettings):
            return run_child(self._name, self.settings, self.doubt.set)
        return open_http(self.settings, authorization)

    async def _listed(self, connection: Connection) -> list[Tool]:
        listed = await connection.list_tools()
        if listed != self._seen:
            self._chosen = await offered(listed, self.settings)
            self._seen = listed
            log.info("of %d tools of the MCP server %s %d are offered", len(listed), self._name, len(self._chosen))
        return self._chosen

    async def _hear(self, message: IncomingMessage) -> None:
        if isinstance(message, ToolListChangedNotification | Exception):
            self.doubt.set()

    async def list_prompts(self) -> ListPromptsResult:
        """None: nothing here uses them."""
        return ListPromptsResult(prompts=[])

    async def get_prompt(self, name: str, arguments: dict[str, Any] | None = None) -> GetPromptResult:
        """Raises NotImplementedError."""
        raise NotImplementedError(f"there is no prompt {name!r}")
