"""What a ChatKit page sends, and what it makes of the answers."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.system import System

SSE = {"accept": "text/event-stream"}


def body_of(operation: str, **params: Any) -> dict[str, Any]:
    return {"type": operation, "params": params}


def say(text: str, **params: Any) -> dict[str, Any]:
    operation = "threads.add_user_message" if "thread_id" in params else "threads.create"
    return body_of(operation, input={"content": [{"type": "input_text", "text": text}]}, **params)


async def post(system: System, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await system.http.post(
        "/api/chatkit", content=content, headers={"content-type": "application/json", **headers}
    )


def events_of(response: httpx.Response) -> list[Any]:
    assert response.content.endswith(b"\n\n")
    lines = response.content.decode().split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


async def a_thread(system: System, text: str = "tokens 3", **headers: str) -> tuple[str, list[Any]]:
    response = await post(system, say(text), **headers)
    assert response.status_code == 200, response.text
    events = events_of(response)
    return events[0]["thread"]["id"], events
