"""The file of MCP servers: what may stand in it, and what is said of what may not."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from chatkit_grpc.environment import SettingsError

from server.app import open_server
from server.mcp_servers.settings import ChildSettings, HttpSettings, read_mcp_servers
from tests.system import ANY_PORT, IMPATIENT

WHOLE = """
[mcpServers.files]
command = "npx"
args = ["-y", "server-filesystem", "${HOME}"]
env = { TOKEN = "${FILES_TOKEN}" }
cwd = "/srv"
call_timeout_seconds = 60
blocked_tools = ["delete"]

[mcpServers.tickets]
url = "https://mcp.example.com/mcp"
headers = { Authorization = "Bearer ${TICKETS_TOKEN}" }
pass_authorization = true
forward_user = true
"""
ENVIRONMENT = {"HOME": "/home/ada", "FILES_TOKEN": "f-secret", "TICKETS_TOKEN": "t-secret"}


def written(folder: Path, text: str, name: str = "mcp.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_says_which_servers_there_are(tmp_path: Path) -> None:
    servers = read_mcp_servers(written(tmp_path, WHOLE), ENVIRONMENT)
    files, tickets = servers["files"], servers["tickets"]
    assert isinstance(files, ChildSettings)
    assert files.args[-1] == "/home/ada"
    assert files.env == {"TOKEN": "f-secret"}
    assert files.call_timeout_seconds == 60
    assert isinstance(tickets, HttpSettings)
    assert tickets.headers == {"Authorization": "Bearer t-secret"}
    assert tickets.passes_authorization
    assert not files.passes_authorization
    assert "secret" not in repr(servers)


def test_the_file_of_another_client_is_read_too(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "mcpServers": {
                "a": {"type": "stdio", "command": "uvx", "args": ["x"], "env": {}},
                "b": {"type": "http", "url": "http://127.0.0.1:1/mcp"},
            }
        }
    )
    assert set(read_mcp_servers(written(tmp_path, text, "mcp.json"))) == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected one table `mcpServers` in mcp.toml"),
        ("mcpServers = 3", "expected one table `mcpServers` in mcp.toml"),
        ("[mcpServers.a]\ncommand = \n", "expected TOML in mcp.toml, line 2, column 11"),
        ("[mcpServers.a]\ncommand = 'x'\n[other]", "expected one table `mcpServers` in mcp.toml"),
        ("[mcpServers.a]\n", "mcp.toml: a: expected either a `command` or a `url`"),
        ("[mcpServers.a]\ncommand = 'x'\nurl = 'http://y'", "mcp.toml: a: expected either a `command` or a `url`"),
        ("[mcpServers]\na = 3", "mcp.toml: a: expected either a `command` or a `url`"),
        ("[mcpServers.A]\ncommand = 'x'", "mcp.toml: A.[key]: string should match"),
        ("[mcpServers.a]\ncommand = 'x'\ncolour = 1", "mcp.toml: a.colour: there is no such setting"),
        ("[mcpServers.a]\ncommand = 'x'\npass_authorization = true", "a.pass_authorization: there is no such setting"),
        ("[mcpServers.a]\ncommand = 7", "mcp.toml: a.command: input should be a valid string"),
        ("[mcpServers.a]\ncommand = 'x'\nargs = 'y'", "mcp.toml: a.args: input should be a valid list"),
        ("[mcpServers.a]\ncommand = 'x'\ncall_timeout_seconds = 0", "a.call_timeout_seconds: input should be greater"),
        (
            "[mcpServers.a]\ncommand = 'x'\ncall_timeout_seconds = nan",
            "a.call_timeout_seconds: input should be a finite",
        ),
        ("[mcpServers.a]\ncommand = 'x'\nmax_tools = 5000", "a.max_tools: input should be less than or equal to 1000"),
        ("[mcpServers.a]\nurl = 'ftp://x'", "mcp.toml: a.url: expected a URL"),
        ("[mcpServers.a]\nurl = 'https://u:hunter2@x/'", "mcp.toml: a.url: expected a URL without a user and password"),
        ("[mcpServers.a]\nurl = 'https://x'\nheaders = { 'a b' = 'c' }", "a.headers: expected names and values"),
        ("[mcpServers.a]\nurl = 'https://x'\nheaders = { a = \"hunter2\\n\" }", "a.headers: expected names and values"),
        ("[mcpServers.a]\nurl = 'http://x.test'\npass_authorization = true", "mcp.toml: a: pass_authorization: users'"),
        ("[mcpServers.a]\nurl = 'https://x/${NOPE}'", "mcp.toml: a.url: the environment has no NOPE"),
        ("[mcpServers.threads]\ncommand = 'x'", "mcp.toml: threads: expected another name, that one is given"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as failure:
        read_mcp_servers(written(tmp_path, text), {}, taken=["threads"])
    assert str(failure.value).startswith("MCP_SERVERS: ")
    assert said in str(failure.value)
    assert "hunter2" not in str(failure.value)


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    text = "[mcpServers.a]\ncommand = 'x'\nmax_tools = 0\n[mcpServers.b]\nurl = 'nonsense'"
    with pytest.raises(SettingsError) as failure:
        read_mcp_servers(written(tmp_path, text))
    assert "a.max_tools" in str(failure.value)
    assert "b.url" in str(failure.value)


@pytest.mark.parametrize("name", ["nothing.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="MCP_SERVERS: can't read"):
        read_mcp_servers(tmp_path / name)


async def test_a_server_does_not_start_with_a_file_that_is_wrong(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "development")
    monkeypatch.setenv("MCP_SERVERS", str(written(tmp_path, "[mcpServers.a]")))
    settings = replace(IMPATIENT, database_url=database_url, grpc_listen=ANY_PORT)
    with pytest.raises(SettingsError, match=r"MCP_SERVERS: mcp\.toml: a: expected either"):
        async with asyncio.timeout(20), open_server(settings):
            raise AssertionError("it started")
