"""A real PostgreSQL for the tests: one server, one migrated template, and a fresh copy of it for each test."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from server.context import Auth, RequestContext
from server.database import Database, open_database
from server.embedded_postgres import embedded_postgres
from server.settings import Settings
from server.store import PostgresStore

# The tests' server may forget everything when the power goes.
FORGETFUL = ("alter system set fsync = off", "alter system set synchronous_commit = off", "select pg_reload_conf()")


def in_memory() -> str | None:
    """Memory as a file system, where there is enough of it: a new database is made several times faster."""
    memory = "/dev/shm"  # noqa: S108 - the name in it is mkdtemp's
    return memory if Path(memory).is_dir() and shutil.disk_usage(memory).free > 4 * 2**30 else None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    # Not pytest's tmp_path: pytest closes its folders to everyone else, and as root PostgreSQL is someone else.
    path = Path(tempfile.mkdtemp(prefix="chatkit-grpc-", dir=in_memory()))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def with_database(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")


def settings_of(url: str, *, pool_size: int = 10, statement_cache: bool = True, timeout: float = 10.0) -> Settings:
    return Settings(
        database_url=url,
        database_pool_size=pool_size,
        database_statement_cache=statement_cache,
        database_timeout_seconds=timeout,
    )


def context_of(user_id: str) -> RequestContext:
    return RequestContext.of(Auth(user_id, "development"))


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def fresh_database(server_url: str, template: str | None = None) -> AsyncIterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    await execute(server_url, f"create database {name} template {template or 'template0'}")
    connection = await asyncpg.connect(server_url)
    oid = await connection.fetchval("select oid from pg_database where datname = $1", name)
    await connection.close()
    try:
        yield with_database(server_url, name)
    finally:
        # Roles are of the whole server: that of ROW_LEVEL_SECURITY goes with its database.
        role = f"chatkit_grpc_user_{oid}"
        await execute(server_url, f"drop database {name} with (force)", f"drop role if exists {role}")


@pytest.fixture(scope="session")
async def postgres_url() -> AsyncIterator[str]:
    """The server: TEST_DATABASE_URL, or an embedded one of our own."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with temporary_folder() as folder:
        async with embedded_postgres(folder) as url:
            await execute(url, *FORGETFUL)
            yield url


@pytest.fixture(scope="session")
async def migrated_template(postgres_url: str) -> AsyncIterator[str]:
    """The name of a database with the newest schema and nothing in it."""
    async with fresh_database(postgres_url) as url:
        async with open_database(settings_of(url)):
            pass
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture
async def empty_database_url(postgres_url: str) -> AsyncIterator[str]:
    """A database without a schema, for one test."""
    async with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture
async def database_url(postgres_url: str, migrated_template: str) -> AsyncIterator[str]:
    """A database with the newest schema, for one test."""
    async with fresh_database(postgres_url, migrated_template) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(settings_of(database_url)) as database:
        yield database


@pytest.fixture
def store(database: Database) -> PostgresStore:
    return PostgresStore(database)


@pytest.fixture
def context() -> RequestContext:
    return context_of("alice")
