"""The PostgreSQL that comes in a wheel: started, shared, stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from chatkit_grpc.errors import DatabaseError

from server import embedded_postgres as module
from server.database import open_database
from server.embedded_postgres import embedded_postgres
from server.settings import Settings
from tests.database import temporary_folder

HOLD = """
import asyncio, sys
from pathlib import Path
from server.embedded_postgres import embedded_postgres

async def main():
    async with embedded_postgres(Path(sys.argv[1])) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


def hold(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Another process that uses the folder until its input ends. It is ready when it has printed the URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def postmaster(folder: Path) -> int:
    return int((folder / "postgres" / "postmaster.pid").read_text().split()[0])


def runs(pid: int) -> bool:
    # In a container nobody may be there to bury the dead.
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def answer(url: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("select current_database()")
    finally:
        await connection.close()


async def test_it_starts_stops_and_keeps_its_data(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    data_dir = folder / "not" / "there" / "yet"
    async with embedded_postgres(data_dir) as url:
        assert await answer(url) == "chatkit"
        pid = postmaster(data_dir)
        connection = await asyncpg.connect(url)
        await connection.execute("create table kept (id int)")
        await connection.close()
    assert not runs(pid)
    async with embedded_postgres(data_dir) as url:
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("select count(*) from kept") == 0
        await connection.close()
    assert caplog.text == ""


async def test_the_loop_runs_on_while_it_starts(folder: Path) -> None:
    async def longest_pause() -> float:
        loop, longest = asyncio.get_running_loop(), 0.0
        while not done.is_set():
            before = loop.time()
            await asyncio.sleep(0.01)
            longest = max(longest, loop.time() - before)
        return longest

    done = asyncio.Event()
    pause = asyncio.create_task(longest_pause())
    async with embedded_postgres(folder):
        done.set()
    assert await pause < 0.3


async def test_two_in_one_process_share_it(folder: Path) -> None:
    async with embedded_postgres(folder):
        async with embedded_postgres(folder) as url:
            pid = postmaster(folder)
        assert await answer(url) == "chatkit"
    assert not runs(pid)


async def test_the_last_process_to_go_stops_it(folder: Path) -> None:
    with hold(folder) as other:
        async with embedded_postgres(folder) as url:
            pid = postmaster(folder)
        assert await answer(url) == "chatkit"
        # Used again after it was left, and after the other one has left too.
        async with embedded_postgres(folder) as url:
            _, errors = await asyncio.to_thread(other.communicate, "")
            assert (other.returncode, errors) == (0, "")
            assert await answer(url) == "chatkit"
    assert not runs(pid)


async def test_a_process_that_was_killed_does_not_keep_it_running(folder: Path) -> None:
    with hold(folder) as other:
        other.kill()
        other.communicate()
    pid = postmaster(folder)
    assert runs(pid)
    async with embedded_postgres(folder) as url:
        assert await answer(url) == "chatkit"
    assert not runs(pid)


async def test_a_process_that_is_interrupted_stops_it(folder: Path) -> None:
    with hold(folder) as other:
        pid = postmaster(folder)
        other.send_signal(signal.SIGINT)
        other.communicate()
    assert not runs(pid)


async def test_a_start_that_is_cancelled_leaves_nothing_running(folder: Path) -> None:
    async def enter() -> None:
        async with embedded_postgres(folder):
            raise AssertionError("it was cancelled before")

    starting = asyncio.create_task(enter())
    while not (folder / "postgres" / "postmaster.pid").exists():
        await asyncio.sleep(0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not (folder / "postgres" / "postmaster.pid").exists()
    async with embedded_postgres(folder) as url:
        assert await answer(url) == "chatkit"


async def test_a_start_that_fails_after_a_cancel_is_still_cancelled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def fail(folder: Path) -> None:
        begun.set()
        go_on.wait(10)
        raise DatabaseError("no")

    monkeypatch.setattr(module, "_start", fail)
    starting = asyncio.create_task(module._started(folder))
    await asyncio.to_thread(begun.wait, 10)
    starting.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_a_locale_that_is_not_installed_does_not_matter(folder: Path) -> None:
    with hold(folder, LC_ALL="xx_XX.UTF-8", LANG="xx_XX.UTF-8") as other:
        _, errors = other.communicate("")
    assert (other.returncode, errors) == (0, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="concerns root alone, who runs PostgreSQL as another user")
async def test_a_folder_that_only_root_may_enter_is_opened_for_entering_only(folder: Path) -> None:
    private = folder / "private"
    private.mkdir(mode=0o700)
    async with embedded_postgres(private) as url:
        assert await answer(url) == "chatkit"
        assert stat.S_IMODE(private.stat().st_mode) == 0o711


async def test_a_path_that_a_shell_would_take_apart_is_refused(folder: Path) -> None:
    with pytest.raises(DatabaseError, match="DATA_DIR") as caught:
        async with embedded_postgres(folder / "my data; rm"):
            pass
    assert caught.value.code == "DATABASE_UNAVAILABLE"


async def test_a_folder_that_cannot_be_made_is_a_clear_error(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(DatabaseError, match=r"can't run in .*/file/postgres: .*DATA_DIR"):
        async with embedded_postgres(folder / "file"):
            pass


async def test_without_a_url_the_database_is_embedded(folder: Path) -> None:
    async with open_database(Settings(data_dir=folder)) as database:
        await database.ping()
        assert database.description == f"embedded PostgreSQL in {folder}/postgres"
        assert await database.fetchval("select lower('ÄÖ') || count(*) from chat_sessions") == "äö0"
