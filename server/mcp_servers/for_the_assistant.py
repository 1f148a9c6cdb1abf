"""The MCP servers of the default assistant: the user's own threads, and those that the operator lists."""

from __future__ import annotations

from chatkit.store import Store

from server.context import RequestContext
from server.mcp_servers.in_process import InProcessServer
from server.mcp_servers.mcp_servers import McpServers
from server.mcp_servers.settings import read_mcp_servers
from server.settings import Settings
from server.store import PostgresStore
from server.threads_mcp import NAME, caller_in_metadata, threads_server


def mcp_servers_for(store: Store[RequestContext], settings: Settings) -> McpServers:
    """The servers, not yet connected. Raises SettingsError for a file that can't be what is meant."""
    listed = read_mcp_servers(settings.mcp_servers, taken=[NAME]) if settings.mcp_servers else {}
    # The SDK's Store can't be searched; ours can.
    own = [InProcessServer(NAME, threads_server(store, caller_in_metadata))] if isinstance(store, PostgresStore) else []
    return McpServers(listed, own)
