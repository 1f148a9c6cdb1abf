"""What the README says is so: its settings, and its examples as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

from bridge.settings import Settings as BridgeSettings
from server.attachments.settings import AttachmentSettings
from server.auth.settings import AuthSettings
from server.dictation_settings import DictationSettings
from server.limits.settings import LimitSettings
from server.settings import Settings as ServerSettings
from tests.database import temporary_folder
from tests.test_local import addresses, program

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def example(name: str) -> str:
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, name
    return found[1]


def test_every_setting_is_in_the_table_with_its_default() -> None:
    lines = re.findall(r"^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \| (.+?) \|", README, re.MULTILINE)
    rows = {name: default for names, default in lines for name in re.findall(r"[A-Z_]+", names)}
    defaults = {
        field.name.upper(): getattr(settings, field.name)
        for settings in (
            *(ServerSettings(), AuthSettings(), LimitSettings(), DictationSettings(), AttachmentSettings()),
            BridgeSettings(),
        )
        for field in fields(settings)
        if not is_dataclass(getattr(settings, field.name))
    }
    assert set(rows) == set(defaults)
    for name, default in defaults.items():
        if default is None or default == ():
            assert not rows[name].startswith("`"), name
        elif type(default) is tuple:
            assert rows[name] == f"`{','.join(default)}`", name
        else:
            assert rows[name] == f"`{str(default).lower() if isinstance(default, bool) else default}`", name


async def python(code: str, folder: Path, **env: str) -> str:
    (folder / "example.py").write_text(code)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "example.py", cwd=folder, env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_the_examples_work_as_they_stand() -> None:
    with temporary_folder() as folder:
        (folder / "my_agent.py").write_text(example("my_agent.py"))
        said = await python(example("embed"), folder)
        assert "dev-user said: hi" in said

        env = {**addresses(), "DATA_DIR": str(folder / ".data"), "PYTHONPATH": str(folder)}
        async with program("server.local", CHATKIT_SERVER="my_agent:create", **env) as system:
            await system.prints("Ctrl-C stops it.")
            assert "my_agent:create" in system.output
            curl = re.search(r"^curl .*?'$", README, re.DOTALL | re.MULTILINE)
            assert curl
            command = curl[0].replace("127.0.0.1:8000", env["BRIDGE_LISTEN"])
            shell = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
            output, _ = await shell.communicate()
            assert b"dev-user said: What is 2 + 40?" in output
        async with program("server.local", OPENAI_API_KEY="", XIAOMI_API_KEY="", **env) as system:
            await system.prints("Ctrl-C stops it.")
            said = await python(example("client").replace("127.0.0.1:50051", env["GRPC_LISTEN"]), folder)
            assert said == "The sum is 42."
