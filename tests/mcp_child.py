"""An MCP server over standard input and output that misbehaves as it is told; it needs nothing but Python.

How it behaves from the start is its first argument: "well", or one of those below.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_TOOLS = (
    "echo",
    "pid",
    "meta",
    "env",
    "die",
    "hang",
    "large",
    "image",
    "fail",
    "change",
    "flood",
    "freeze",
    "spawn",
    "die_childless",
)

extra_tools: list[str] = []


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": f"Does {name}.", "inputSchema": {"type": "object"}, **more}


def listed(behaviour: str, cursor: str | None) -> dict[str, Any]:
    tools = [tool(name) for name in (*_TOOLS, "die_childless", *extra_tools)]
    if behaviour == "many":
        tools += [tool(f"tool_{number}") for number in range(10_000)]
    if behaviour == "many odd":
        wrong = {"type": "object", "properties": {"a": {"type": "nonsense"}}}
        tools[:0] = [tool(f"tool_{number}", inputSchema=wrong) for number in range(10_000)]
    if behaviour == "odd":
        nested: dict[str, Any] = {}
        for _ in range(30):
            nested = {"properties": {"a": nested}}
        tools[:0] = [
            tool("no_schema", inputSchema={"type": "object", "properties": {"a": {"type": "nonsense"}}}),
            tool("large", inputSchema={"type": "object", "description": "x" * 40_000}),
            tool("deep", inputSchema={"type": "object", **nested}),
            tool(""),
            tool("composed", inputSchema={"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            tool("list", inputSchema={"type": "object", "properties": {"a": {"type": "array"}}}),
            tool("slow_schema", outputSchema={"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}}),
            tool("echo", description="d" * 10_000, _meta={"chatkit-grpc/user_id": "mallory"}),
        ]
    if behaviour == "endless":
        return {"tools": tools, "nextCursor": str(int(cursor or 0) + 1)}
    return {"tools": tools}


def call(name: str, arguments: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    if name in _DEEDS:
        _DEEDS[name]()
    if name == "image":
        return {"content": [{"type": "image", "data": _PNG, "mimeType": "image/png"}]}
    if name == "slow_schema":
        return {**text("done"), "structuredContent": {"a": "a" * 40 + "!"}}
    if name == "die_childless":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        os._exit(1)
    if name == "fail":
        return {**text("the disk is full"), "isError": True}
    if name == "change":
        extra_tools.append(arguments["name"])
        send({"method": "notifications/tools/list_changed"})
    said = {
        "echo": lambda: str(arguments.get("text")),
        "pid": lambda: str(os.getpid()),
        "meta": lambda: json.dumps(meta),
        "env": lambda: json.dumps(dict(os.environ)),
        "large": lambda: "x" * int(arguments["characters"]),
        "spawn": lambda: str(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid),
    }
    return text(said.get(name, lambda: f"this is {name}")())


def flood() -> None:
    while True:
        send({"method": "notifications/message", "params": {"level": "info", "data": "x" * 100}})


_DEEDS: dict[str, Callable[[], object]] = {
    "die": lambda: os._exit(1),
    "hang": lambda: time.sleep(1000),
    "flood": flood,
    "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def text(said: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}]}


def answer(request: dict[str, Any], behaviour: str) -> dict[str, Any]:
    params = request.get("params") or {}
    match request["method"]:
        case "initialize":
            version = params["protocolVersion"]
            info = {"name": "child", "version": "1"}
            return {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}}
        case "tools/list":
            return {"result": listed(behaviour, params.get("cursor"))}
        case "tools/call":
            return {"result": call(params["name"], params.get("arguments") or {}, params.get("_meta") or {})}
        case _:
            return {"error": {"code": -32601, "message": "Method not found"}}


def main(behaviour: str) -> None:
    if behaviour == "exit":
        sys.exit(1)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour in {"junk", "stubborn"}:
        print("Welcome to the secret server!\n\nlistening …", flush=True)
    while behaviour == "only junk":
        print("junk", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request and behaviour != "silent":
            send({"id": request["id"], **answer(request, behaviour)})
    if behaviour == "stubborn":
        time.sleep(1000)


if __name__ == "__main__":
    main(sys.argv[1])
