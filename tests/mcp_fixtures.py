"""Assistants with MCP servers, behind the front door, and a model server that calls their tools."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from agents.mcp import MCPServer

from server.assistant import Assistant
from server.mcp_servers.mcp_servers import McpServers
from server.mcp_servers.settings import ChildSettings, ServerSettings
from server.mcp_servers.supervisor import Rhythm
from server.model_choice import choose_model
from server.models import OpenModels, open_model
from server.settings import Settings
from server.store import PostgresStore
from tests.fake_openai import Call, FakeOpenAI, Say
from tests.issuer import hs256
from tests.page import events_of, post, say
from tests.system import IMPATIENT, System, open_system

CHILD = str(Path(__file__).with_name("mcp_child.py"))
QUICK = Rhythm(retry=0.05, longest_retry=0.2, refresh=5.0, pause=0.01)


def child(behaviour: str = "well", **settings: Any) -> ChildSettings:
    return ChildSettings(command=sys.executable, args=[CHILD, behaviour], **settings)


@dataclass(frozen=True, slots=True)
class Plugged:
    """A system whose assistant has MCP servers, and its model."""

    system: System
    servers: McpServers
    model: FakeOpenAI
    is_production: bool

    async def call(self, tool: str, arguments: Mapping[str, Any] | None = None, *, user: str = "dev-user") -> str:
        """What the model is told when it calls a tool; the whole answer, the call included, has been given then."""
        asked = len(self.model.requests)
        self.model.then(Call(tool, arguments or {}), Say(text="Done."))
        response = await post(self.system, say("Do it."), **self.headers(user))
        assert response.status_code == 200, response.text
        assert events_of(response)[-1]["type"] == "thread.item.done", response.text
        return output_in(self.model.requests[asked + 1])

    def headers(self, user: str) -> dict[str, str]:
        """What makes a request one of a user's: in production his token."""
        return {"authorization": f"Bearer {hs256(sub=user)}"} if self.is_production else {"x-user-id": user}

    async def tools(self) -> list[str]:
        """The tools that the model is offered."""
        self.model.then(Say(text="Hello."))
        await post(self.system, say("Hello"))
        return [name_of(tool) for tool in self.model.requests[-1].get("tools", [])]

    async def until(self, name: str, *, is_up: bool = True) -> None:
        """Wait until a server is connected, or isn't."""
        await until(lambda: self.servers.health_of_parts()[f"mcp.{name}"] is is_up)


def name_of(tool: Mapping[str, Any]) -> str:
    return str(tool.get("function", tool)["name"])


def output_in(request: Mapping[str, Any]) -> str:
    """What a tool gave, as the model was told at last."""
    if "messages" in request:
        content = request["messages"][-1]["content"]
        return content if isinstance(content, str) else "".join(part["text"] for part in content)
    output = request["input"][-1]["output"]
    return output if isinstance(output, str) else "".join(part.get("text") or json.dumps(part) for part in output)


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def plugged(
    database_url: str,
    servers: Mapping[str, ServerSettings],
    *,
    kind: str = "responses",
    own: Callable[[PostgresStore], Sequence[MCPServer]] = lambda _: (),
    rhythm: Rhythm = QUICK,
    settings: Settings = IMPATIENT,
    wait: bool = True,
) -> AsyncIterator[Plugged]:
    """Run a system whose assistant has the servers; once they are connected, unless nobody waits for that."""
    async with FakeOpenAI() as model:
        choice = choose_model(Settings(openai_api_key="sk-test"))
        if kind == "chat_completions":
            choice = choose_model(Settings(model_base_url=model.base_url, model_name="fake"))
        opened = open_model(replace(choice, base_url=model.base_url))
        made: list[McpServers] = []

        def factory(store: PostgresStore) -> Assistant:
            made.append(McpServers(servers, own(store), rhythm))
            return Assistant(store, OpenModels([opened]), mcp_servers=made[0])

        async with open_system(database_url, factory, server=settings) as system:
            running = Plugged(system, made[0], model, not settings.is_development)
            for name in servers if wait else ():
                await running.until(name)
            yield running


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
