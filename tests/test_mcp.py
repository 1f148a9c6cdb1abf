"""MCP servers that are child processes, well behaved and not, through the front door."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from agents import UserError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.mcp_servers.settings import ChildSettings
from server.mcp_servers.supervisor import Rhythm
from tests.database import fresh_database
from tests.fake_openai import Call, Say
from tests.mcp_fixtures import CHILD, QUICK, Plugged, child, is_alive, plugged, until
from tests.page import body_of, events_of, post, say
from tests.processes import half

KINDS = ("responses", "chat_completions")


@pytest.fixture(scope="module", params=KINDS)
async def well(request: pytest.FixtureRequest, postgres_url: str, migrated_template: str) -> AsyncIterator[Plugged]:
    """A system whose servers stay well, for all tests that do them no harm."""
    servers = {
        "box": child(max_result_characters=1000),
        "other": child(),
        "told": child(forward_user=True, env={"COLOR": "red"}),
        "few": child(allowed_tools=["echo", "pid", "die"], blocked_tools=["die"]),
    }
    async with (
        fresh_database(postgres_url, migrated_template) as url,
        plugged(url, servers, kind=request.param) as running,
    ):
        yield running


async def test_the_model_gets_what_a_tool_gives(well: Plugged) -> None:
    assert await well.call("mcp_box__echo", {"text": "Grüß Gott"}) == "Grüß Gott"


async def test_each_server_runs_once_for_all_users(well: Plugged) -> None:
    pids = {await well.call("mcp_box__pid", user=user) for user in ("alice", "bob")}
    assert len(pids) == 1


async def test_tools_of_the_same_name_are_told_apart(well: Plugged) -> None:
    tools = await well.tools()
    assert len(set(tools)) == len(tools)
    assert {"mcp_box__pid", "mcp_other__pid", "current_time"} <= set(tools)
    assert await well.call("mcp_box__pid") != await well.call("mcp_other__pid")


async def test_a_server_is_told_of_the_user_only_where_that_is_wanted(well: Plugged) -> None:
    told = json.loads(await well.call("mcp_told__meta", {"user_id": "mallory"}, user="alice"))
    assert told["chatkit-grpc/user_id"] == "alice"
    assert "alice" not in await well.call("mcp_other__meta", user="alice")


async def test_a_child_knows_no_secrets_of_the_server(well: Plugged) -> None:
    environment = json.loads(await well.call("mcp_told__env"))
    assert environment["COLOR"] == "red"
    assert set(environment) <= {"COLOR", "PATH", "HOME", "LOGNAME", "SHELL", "TERM", "USER", "LC_CTYPE"}


async def test_only_what_is_allowed_and_not_blocked_is_offered(well: Plugged) -> None:
    tools = await well.tools()
    assert [name for name in tools if name.startswith("mcp_few")] == ["mcp_few__echo", "mcp_few__pid"]


async def test_an_image_harms_no_answer(well: Plugged) -> None:
    output = await well.call("mcp_box__image")
    assert ("data:image/png" in output) == well.model.paths[-1].endswith("/responses")


async def test_the_model_reads_why_a_tool_failed(well: Plugged) -> None:
    assert await well.call("mcp_box__fail") == "the disk is full"


async def test_a_long_result_is_cut(well: Plugged) -> None:
    output = await well.call("mcp_box__large", {"characters": 300_000})
    assert output == "x" * 1000 + "\n[cut: 299000 more characters are left out]"


async def test_a_huge_result_is_refused_and_the_server_connected_again(database_url: str) -> None:
    async with plugged(database_url, {"box": child()}) as running:
        pid = await running.call("mcp_box__pid")
        began = time.monotonic()
        assert "broke off" in await running.call("mcp_box__large", {"characters": 50_000_000})
        assert time.monotonic() - began < 5
        await running.until("box")
        await until(lambda: not is_alive(int(pid)))
        assert await running.call("mcp_box__echo", {"text": "back"}) == "back"


async def test_junk_on_standard_output_is_passed_over_and_in_no_log(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with plugged(database_url, {"box": child("junk")}) as running:
            assert await running.call("mcp_box__echo", {"text": "secret words"}) == "secret words"
    assert "the MCP server box prints what is no message" in caplog.text
    assert "Welcome" not in caplog.text
    assert "secret" not in caplog.text


async def test_of_ten_thousand_tools_a_hundred_are_offered(database_url: str) -> None:
    async with plugged(database_url, {"box": child("many")}) as running:
        assert len([name for name in await running.tools() if name.startswith("mcp_")]) == 100


async def test_tools_that_a_model_would_refuse_are_left_out(database_url: str) -> None:
    async with plugged(database_url, {"box": child("odd")}) as running:
        names = [name.removeprefix("mcp_box__") for name in await running.tools()]
        assert not {"no_schema", "deep", "composed"} & set(names)
        listing = next(tool for tool in running.model.requests[-1]["tools"] if tool["name"] == "mcp_box__list")
        assert listing["parameters"]["properties"]["a"]["items"] == {}
        assert names.count("echo") == 1
        described = next(tool for tool in running.model.requests[-1]["tools"] if tool["name"] == "mcp_box__echo")
        assert len(described["description"]) < 5000
        assert all(len(json.dumps(tool)) < 10_000 for tool in running.model.requests[-1]["tools"])


async def test_no_schema_of_a_server_holds_up_anybody(database_url: str) -> None:
    async with plugged(database_url, {"box": child("odd")}) as running:
        began = time.monotonic()
        assert "done" in await running.call("mcp_box__slow_schema")
        assert time.monotonic() - began < 5


async def test_a_child_that_has_died_is_noticed_though_what_it_started_lives_on(database_url: str) -> None:
    async with plugged(database_url, {"box": child(call_timeout_seconds=20)}) as running:
        began = time.monotonic()
        assert "broke off" in await running.call("mcp_box__die_childless")
        assert time.monotonic() - began < 10
        await running.until("box")


async def test_ten_thousand_odd_tools_hold_up_nobody(database_url: str) -> None:
    async with plugged(database_url, {"bad": child("many odd"), "good": child()}, wait=False) as running:
        await running.until("good")
        while not running.servers.health_of_parts()["mcp.bad"]:
            began = time.monotonic()
            assert await running.call("mcp_good__echo", {"text": "here"}) == "here"
            assert time.monotonic() - began < 2


async def test_a_server_can_change_its_tools(database_url: str) -> None:
    async with plugged(database_url, {"box": child()}) as running:
        assert "mcp_box__new" not in await running.tools()
        await running.call("mcp_box__change", {"name": "new"})
        async with asyncio.timeout(5):
            while "mcp_box__new" not in await running.tools():
                await asyncio.sleep(0.02)
        assert await running.call("mcp_box__new") == "this is new"


# -- servers that break --------------------------------------------------------------------------


async def test_a_server_killed_during_a_call_is_an_error_for_the_model_and_comes_back(database_url: str) -> None:
    async with plugged(database_url, {"box": child(), "other": child()}) as running:
        pid = int(await running.call("mcp_box__pid"))
        running.model.then(Call("mcp_box__hang", {}), Say(text="Never mind."))
        answering = asyncio.create_task(post(running.system, say("Go")))
        await until(lambda: len(running.model.requests) == 3)
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        events = events_of(await answering)
        assert "Never mind." in json.dumps(events[-1])
        assert "broke off" in json.dumps(running.model.requests[-1]["input"])
        await running.until("box")
        assert int(await running.call("mcp_box__pid")) != pid


async def test_an_idle_server_that_dies_comes_back(database_url: str) -> None:
    async with plugged(database_url, {"box": child()}) as running:
        pid = int(await running.call("mcp_box__pid"))
        os.kill(pid, signal.SIGKILL)
        await running.until("box", is_up=False)
        await running.until("box")
        assert int(await running.call("mcp_box__pid")) != pid


async def test_a_call_that_hangs_ends_in_time_and_disturbs_nobody(database_url: str) -> None:
    servers = {"box": child(call_timeout_seconds=0.5, connect_timeout_seconds=1.0), "other": child()}
    async with plugged(database_url, servers) as running:
        pid = int(await running.call("mcp_box__pid"))
        assert await running.call("mcp_box__hang") == '"box" did not answer within 0.5 seconds.'
        # It answers nothing any more: it is ended, and another one started.
        await until(lambda: not is_alive(pid))
        await running.until("box")
        assert await running.call("mcp_other__echo", {"text": "here"}) == "here"


async def test_a_server_that_floods_is_dropped(database_url: str) -> None:
    async with plugged(database_url, {"box": child(), "other": child()}) as running:
        assert "broke off" in await running.call("mcp_box__flood")
        assert await running.call("mcp_other__echo", {"text": "here"}) == "here"
        await running.until("box")


async def test_servers_that_never_come_up_delay_nothing(database_url: str) -> None:
    began = time.monotonic()
    behaviours = ("silent", "exit", "only junk", "endless")
    bad = {name.replace(" ", "_"): child(name, connect_timeout_seconds=1.0) for name in behaviours}
    async with plugged(database_url, {**bad, "good": child()}, wait=False) as running:
        await running.until("good")
        tools = await running.tools()
        assert time.monotonic() - began < 5
        assert "mcp_good__echo" in tools
        await asyncio.sleep(1.2)
        assert [name for name, is_up in running.servers.health_of_parts().items() if is_up] == ["mcp.good"]


async def test_a_frozen_server_holds_up_no_call_and_is_replaced(database_url: str) -> None:
    servers = {"box": child(call_timeout_seconds=0.3, connect_timeout_seconds=2.0)}
    async with plugged(database_url, servers) as running:
        pid = int(await running.call("mcp_box__pid"))
        server = running.servers.agent_options()["mcp_servers"][0]
        began = time.monotonic()
        # Of the second it doesn't even take in what it is asked.
        for arguments in ({}, {"text": "x" * 1_000_000}, {"text": "x"}):
            with pytest.raises(UserError, match="did not answer"):
                await server.call_tool("freeze", arguments)
        assert time.monotonic() - began < 2
        await until(lambda: not is_alive(pid))
        await running.until("box")
        assert int(await running.call("mcp_box__pid")) != pid


async def test_a_command_that_does_not_exist_is_told_and_tried_again(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with plugged(database_url, {"bad": ChildSettings(command="/no/such/thing")}, wait=False) as running:
            await until(lambda: caplog.text.count("can't be connected: FileNotFoundError") > 2)
            assert not [name for name in await running.tools() if name.startswith("mcp_")]


async def test_the_pauses_between_attempts_grow(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    rhythm = Rhythm(retry=0.1, longest_retry=10)
    with caplog.at_level(logging.WARNING, "server.mcp_servers"):
        async with plugged(database_url, {"bad": child("exit")}, wait=False, rhythm=rhythm):
            await asyncio.sleep(1.0)
    assert 2 <= caplog.text.count("can't be connected") <= 5


# -- what is told of them ------------------------------------------------------------------------


async def test_health_says_which_servers_are_connected(database_url: str) -> None:
    servers = {"good": child(), "bad": child("exit")}
    async with plugged(database_url, servers, wait=False) as running:
        await running.until("good")
        health: Any = health_pb2_grpc.HealthStub(running.system.channel)

        async def told() -> Any:
            return (await running.system.http.get("/api/chatkit/health")).json()["mcp_servers"]

        async with asyncio.timeout(10):
            while await told() != {"good": "connected", "bad": "unavailable"}:
                await asyncio.sleep(0.1)
        for name, status in (("mcp.good", "SERVING"), ("mcp.bad", "NOT_SERVING")):
            response = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert response.status == health_pb2.HealthCheckResponse.ServingStatus.Value(status)
        ask: Any = running.system.channel.unary_unary("/grpc.health.v1.Health/List")
        listed = health_pb2.HealthListResponse.FromString(await ask(b""))  # type: ignore[attr-defined] # stubs are older
        assert {name for name in listed.statuses if "." in name} >= {"mcp.good", "chatkit_grpc.v1.ChatService"}
        assert listed.statuses[""].status == health_pb2.HealthCheckResponse.SERVING
        assert (await running.system.http.get("/api/chatkit/health")).status_code == 200


async def test_without_servers_health_names_none(database_url: str) -> None:
    async with plugged(database_url, {}) as running:
        assert (await running.system.http.get("/api/chatkit/health")).json()["mcp_servers"] == {}


# -- ends ----------------------------------------------------------------------------------------


async def test_the_end_of_the_server_leaves_no_process(database_url: str) -> None:
    servers = {"box": child(), "stubborn": child("stubborn"), "silent": child("silent")}
    async with plugged(database_url, servers, wait=False) as running:
        await running.until("box")
        await running.until("stubborn")
        pids = [int(await running.call(f"mcp_{name}__pid")) for name in ("box", "stubborn")]
        pids.append(int(await running.call("mcp_stubborn__spawn")))
        assert all(map(is_alive, pids))
        began = time.monotonic()
    assert time.monotonic() - began < 8
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_the_end_of_the_process_leaves_no_other(
    database_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"box": {"command": sys.executable, "args": [CHILD, "well"]}}}))
    settings = {"ENVIRONMENT": "development", "DATABASE_URL": database_url, "GRPC_LISTEN": "127.0.0.1:0"}
    async with half("server", **settings, MCP_SERVERS=str(file)) as server:
        await server.prints("the MCP server box is connected")
        children = [child.pid for child in psutil.Process(server.pid).children() if CHILD in child.cmdline()]
        assert len(children) == 1
        os.kill(server.pid, number)
        await until(lambda: not server.is_running)
    await until(lambda: not any(map(is_alive, children)))


async def test_a_stop_ends_a_call_and_leaves_the_server_alone(database_url: str) -> None:
    async with plugged(database_url, {"box": child()}, rhythm=QUICK) as running:
        pid = int(await running.call("mcp_box__pid"))
        running.model.then(Call("mcp_box__hang", {}), Say(text="Never."))
        answering = asyncio.create_task(post(running.system, say("Go")))
        await until(lambda: len(running.model.requests) == 3)
        await asyncio.sleep(0.1)
        thread_id = (await post(running.system, body_of("threads.list", limit=1))).json()["data"][0]["id"]
        await post(running.system, body_of("runs.cancel", thread_id=thread_id))
        events = events_of(await answering)
        task = events[-1]["item"]["workflow"]["tasks"][0]
        assert (task["status_indicator"], task["content"]) == ("complete", "This was stopped.")
        assert is_alive(pid)
        items = (await post(running.system, body_of("items.list", thread_id=thread_id, order="asc"))).json()["data"]
        assert [item["type"] for item in items] == ["user_message", "workflow"]
