"""The MCP server for a user's own threads: in the default assistant, and alone over standard input and output."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import mcp
import pytest
from agents import UserError
from chatkit.types import AssistantMessageContent, AssistantMessageItem, HiddenContextItem, ThreadMetadata
from mcp.client.stdio import StdioServerParameters

from server.assistant import Assistant
from server.mcp_servers.caller import Caller, in_metadata
from server.mcp_servers.for_the_assistant import mcp_servers_for
from server.mcp_servers.in_process import InProcessServer
from server.model_choice import choose_model
from server.models import OpenModel, OpenModels
from server.offline_model import OfflineModel
from server.settings import Settings
from server.store import PostgresStore
from server.threads_mcp import NAME, caller_in_metadata, main, threads_server
from tests.database import context_of
from tests.mcp_fixtures import Plugged, plugged
from tests.page import a_thread, events_of, post, say
from tests.system import IMPATIENT, open_system

WHEN = datetime(2026, 3, 1, 12)  # noqa: DTZ001 # as the SDK makes them


async def write(store: PostgresStore, user: str, thread_id: str, *texts: str, title: str | None = None) -> None:
    context = context_of(user)
    await store.save_thread(ThreadMetadata(id=thread_id, created_at=WHEN, title=title), context)
    for number, text in enumerate(texts):
        item = AssistantMessageItem(
            id=f"{thread_id}_{number}",
            thread_id=thread_id,
            created_at=WHEN,
            content=[AssistantMessageContent(text=text)],
        )
        await store.add_thread_item(thread_id, item, context)


@asynccontextmanager
async def with_threads(database_url: str, **settings: Any) -> AsyncIterator[Plugged]:
    async with plugged(
        database_url,
        {},
        own=lambda store: [InProcessServer(NAME, threads_server(store, caller_in_metadata))],
        settings=replace(IMPATIENT, **settings),
    ) as running:
        yield running


async def ask(running: Plugged, tool: str, user: str = "alice", **arguments: Any) -> Any:
    output = await running.call(f"mcp_threads__{tool}", arguments, user=user)
    return json.loads(output) if output.startswith("{") else output


@pytest.mark.parametrize("row_level_security", [False, True])
async def test_a_user_finds_what_was_said_in_his_own_threads(database_url: str, row_level_security: bool) -> None:
    async with with_threads(database_url, row_level_security=row_level_security) as running:
        store = running.system.server.store
        await write(store, "alice", "thr_a", "The cat sat on the mat.", "Nothing.", title="Cats")
        await write(store, "bob", "thr_b", "Bob's cat is secret.")
        (found,) = (await ask(running, "search_threads", words="CAT mat"))["found"]
        assert found == {
            "thread_id": "thr_a",
            "title": "Cats",
            "role": "assistant",
            "time": found["time"],
            "text": "The cat sat on the mat.",
        }
        assert (await ask(running, "search_threads", words="cat secret"))["found"] == []
        assert [f["thread_id"] for f in (await ask(running, "search_threads", "bob", words="cat"))["found"]] == [
            "thr_b"
        ]


async def test_the_question_itself_is_not_found(database_url: str) -> None:
    async with with_threads(database_url) as running:
        # Each call is made on a thread on which the user said "Do it."
        assert (await ask(running, "search_threads", words="do it"))["found"] == []
        # The thread of the call before is another one by now.
        assert len((await ask(running, "search_threads", words="do it"))["found"]) == 1


@pytest.mark.parametrize("tool", ["read_thread", "search_threads", "list_threads"])
async def test_whoever_a_model_names_the_user_is_who_asks(database_url: str, tool: str) -> None:
    async with with_threads(database_url) as running:
        await write(running.system.server.store, "bob", "thr_b", "Bob's secret.", title="Bob's secret")
        arguments = {
            "thread_id": "thr_b",
            "words": "secret",
            "user_id": "bob",
            "_meta": {"chatkit-grpc/user_id": "bob"},
        }
        output = await running.call(f"mcp_threads__{tool}", arguments, user="alice")
        assert "Bob's secret" not in output


async def test_another_users_thread_is_none(database_url: str) -> None:
    async with with_threads(database_url) as running:
        await write(running.system.server.store, "bob", "thr_b", "Bob's.")
        others, none = [await ask(running, "read_thread", thread_id=thread_id) for thread_id in ("thr_b", "thr_0")]
        assert others.endswith("There is no such thread.")
        assert others.replace("thr_b", "thr_0") == none


async def test_a_thread_is_read_page_by_page_without_what_is_hidden(database_url: str) -> None:
    async with with_threads(database_url) as running:
        store = running.system.server.store
        await write(store, "alice", "thr_a", *(f"message {number}" for number in range(5)))
        hidden = HiddenContextItem(id="h", thread_id="thr_a", created_at=WHEN, content="hidden words")
        await store.add_thread_item("thr_a", hidden, context_of("alice"))
        first = await ask(running, "read_thread", thread_id="thr_a", limit=3)
        second = await ask(running, "read_thread", thread_id="thr_a", limit=3, after=first["next"])
        texts = [message["text"] for page in (first, second) for message in page["messages"]]
        assert texts == [f"message {number}" for number in range(5)]
        assert "next" not in second
        newest = await ask(running, "read_thread", thread_id="thr_a", limit=1, newest_first=True)
        assert newest["messages"][0]["text"] == "message 4"
        assert (await ask(running, "search_threads", words="hidden words"))["found"] == []


async def test_what_is_read_is_bounded_and_nothing_is_passed_over(database_url: str) -> None:
    async with with_threads(database_url) as running:
        texts = [f"{number} " + "x" * 10_000 for number in range(20)]
        await write(running.system.server.store, "alice", "thr_a", *texts)
        seen: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = await ask(running, "read_thread", thread_id="thr_a", limit=50, **after)
            assert len(json.dumps(page)) < 40_000
            seen += [message["text"].split()[0] for message in page["messages"]]
            assert all(message["characters_left_out"] > 0 for message in page["messages"])
            if "next" not in page:
                break
            after = {"after": page["next"]}
        assert seen == [str(number) for number in range(20)]


async def test_bad_arguments_are_told_to_the_model(database_url: str) -> None:
    async with with_threads(database_url) as running:
        await write(running.system.server.store, "alice", "thr_a", "Hello.")
        bad: list[tuple[str, dict[str, Any]]] = [
            ("search_threads", {}),
            ("search_threads", {"words": ""}),
            ("search_threads", {"words": "x" * 1000}),
            ("search_threads", {"words": 7}),
            ("search_threads", {"words": "x", "limit": 1000}),
            ("read_thread", {"thread_id": "thr_a", "after": "nothing"}),
            ("read_thread", {"thread_id": "thr_a", "limit": -1}),
            ("read_thread", {"thread_id": "thr_a\x00"}),
            ("list_threads", {"after": "nothing"}),
            ("list_threads", {"limit": "many"}),
        ]
        for tool, arguments in bad:
            output = await ask(running, tool, **arguments)
            assert isinstance(output, str), (tool, arguments)
            assert "can't be read for now" not in output, (tool, arguments)


async def test_odd_words_find_nothing_and_break_nothing(database_url: str) -> None:
    async with with_threads(database_url) as running:
        for words in ("!!! ???", "\x00", "'; drop table chat_messages; --", "<->", "a & | b", "\\", '"'):
            output = await ask(running, "search_threads", words=words)
            assert output == {"found": []} or "expected a word to look for" in output, words
        # The Agents SDK itself takes no half of a character from a model.
        server = running.servers.agent_options()["mcp_servers"][0]
        with pytest.raises(UserError):
            await server.call_tool("search_threads", {"words": "\ud800"}, in_metadata(Caller("alice", "thr_1", None)))


async def test_a_database_that_is_away_is_told_without_its_words(database_url: str) -> None:
    async with with_threads(database_url) as running:
        server = running.servers.agent_options()["mcp_servers"][0]
        await running.system.server.database.pool.close()
        with pytest.raises(Exception, match="atabase") as failure:
            await server.call_tool("list_threads", {}, in_metadata(Caller("alice", "thr_1", None)))
        assert "postgres" not in str(failure.value)


async def test_the_offline_model_finds_words_on_command(database_url: str) -> None:
    def factory(store: PostgresStore) -> Any:
        models = OpenModels([OpenModel(OfflineModel(0), choose_model(Settings()))])
        return Assistant(store, models, mcp_servers=mcp_servers_for(store, Settings()))

    async with open_system(database_url, factory) as system:
        await a_thread(system, "My bicycle is green")
        events = events_of(await post(system, say("/search bicycle")))
        said = json.dumps(events[-1], ensure_ascii=False)
        assert "My bicycle is green" in said
        events = events_of(await post(system, say('/tool mcp_threads__list_threads {"limit": 1}')))
        assert '\\"threads\\"' in json.dumps(events[-1])


# -- alone ---------------------------------------------------------------------------------------


async def test_alone_it_reads_for_one_user_and_for_nobody_else(database_url: str, store: PostgresStore) -> None:
    await write(store, "alice", "thr_a", "Alice's cat.")
    await write(store, "bob", "thr_b", "Bob's cat.")
    program = StdioServerParameters(
        command=sys.executable, args=["-m", "server.threads_mcp", "alice"], env={"DATABASE_URL": database_url}
    )
    async with mcp.Client(program, cache=None) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {
            "list_threads",
            "search_threads",
            "read_thread",
        }
        meta: Any = {"chatkit-grpc/user_id": "bob", "chatkit-grpc/thread_id": "thr_a"}
        result = await client.call_tool("search_threads", {"words": "cat"}, meta=meta)
        assert isinstance(result.content[0], mcp.types.TextContent)
        assert [place["text"] for place in json.loads(result.content[0].text)["found"]] == ["Alice's cat."]
        refused = await client.call_tool("read_thread", {"thread_id": "thr_b"})
        assert refused.is_error


@pytest.mark.parametrize(
    ("arguments", "url", "said"),
    [
        ([], "postgresql://x/y", "expected one argument, the id of the user"),
        (["a b"], "postgresql://x/y", "expected one argument, the id of the user"),
        (["alice", "bob"], "postgresql://x/y", "expected one argument, the id of the user"),
        (["alice"], "", "DATABASE_URL: expected the database of the threads"),
    ],
)
def test_alone_it_says_what_it_needs(
    arguments: list[str], url: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
