"""The second wall between users: what a statement that forgot its user would see, write and leave behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from asyncpg import InsufficientPrivilegeError, connect
from chatkit.types import ThreadMetadata
from chatkit_grpc.environment import SettingsError
from chatkit_grpc.errors import DatabaseError

from server import statements
from server.app import open_server
from server.database import Database, open_database
from server.row_security import RowSecurityDatabase, with_row_security
from server.store import PostgresStore, RecordNotFoundError
from tests.database import context_of, execute, fresh_database, settings_of
from tests.page import a_thread, body_of, post
from tests.scripted import ScriptedServer
from tests.system import ANY_PORT, IMPATIENT, open_system

ROLE = "select 'chatkit_grpc_user_' || oid from pg_database where datname = current_database()"
TABLES = (
    *("chat_sessions", "chat_messages", "attachments", "attachment_chunks", "attachment_usage", "feedback"),
    *("runs", "run_events", "thread_events"),
)


@pytest.fixture
async def walled(database: Database) -> RowSecurityDatabase:
    """Two users have a thread each."""
    walled = await with_row_security(database)
    store = PostgresStore(walled)
    for user in ("alice", "bob"):
        thread = ThreadMetadata(id=f"thr_{user}", created_at=datetime.now())
        await store.save_thread(thread, context_of(user))
    return walled


async def test_a_statement_without_its_user_sees_one_users_rows(walled: RowSecurityDatabase) -> None:
    everything = "select session_id from chat_sessions where $1 <> ''"
    assert [row["session_id"] for row in await walled.fetch(everything, "alice")] == ["thr_alice"]
    assert await walled.fetch(everything, "nobody") == []
    changed = await walled.fetch("update chat_sessions set title = $1 returning session_id", "alice")
    assert [row["session_id"] for row in changed] == ["thr_alice"]
    assert len(await walled.fetch("delete from chat_sessions where $1 = 'bob' returning 1", "bob")) == 1


async def test_a_store_whose_statement_forgot_its_user_finds_nobody_elses_thread(
    walled: RowSecurityDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    careless = statements.LOAD_THREAD.replace("where user_id = $1 and", "where $1 <> '' and")
    assert careless != statements.LOAD_THREAD
    monkeypatch.setattr(statements, "LOAD_THREAD", careless)
    store, alice = PostgresStore(walled), context_of("alice")
    assert (await store.load_thread("thr_alice", alice)).id == "thr_alice"
    with pytest.raises(RecordNotFoundError):
        await store.load_thread("thr_bob", alice)


async def test_nothing_can_be_written_for_somebody_else(walled: RowSecurityDatabase) -> None:
    with pytest.raises(DatabaseError, match="42501"):
        await walled.fetch("insert into chat_sessions (user_id, session_id) select 'bob', $1", "alice")
    with pytest.raises(DatabaseError, match="42501"):
        await walled.fetch("update chat_sessions set user_id = 'bob' where user_id = $1", "alice")


async def test_who_says_no_user_sees_nothing(walled: RowSecurityDatabase, database: Database) -> None:
    async with database.pool.acquire() as connection, connection.transaction():
        role = await connection.fetchval(ROLE)
        await connection.execute(f"set local role {role}")
        for table in TABLES:
            assert await connection.fetchval(f"select count(*) from {table}") == 0  # noqa: S608 # names of tables


async def test_every_table_with_users_is_behind_the_wall(walled: RowSecurityDatabase, database: Database) -> None:
    rows = await database.fetch(
        """
        select attrelid::regclass::text as name from pg_attribute join pg_class on pg_class.oid = attrelid
        where attname = 'user_id' and relkind = 'r' and not relrowsecurity
        """
    )
    # What the store's role may not touch at all.
    assert {row["name"] for row in rows} == {"rate_limits", "token_usage", "attachment_leftovers"}
    with pytest.raises(DatabaseError, match="42501"):
        await walled.fetch("select 1 from rate_limits where user_id = $1", "alice")


async def test_a_connection_is_nobodys_afterwards(walled: RowSecurityDatabase) -> None:
    for _ in range(20):
        await walled.fetch("select $1::text", "alice")
        with pytest.raises(DatabaseError):
            await walled.fetch("select $1::integer / 0", "alice")
    async with AsyncExitStack() as stack:
        for _ in range(walled.pool.get_size()):
            connection = await stack.enter_async_context(walled.pool.acquire())
            row = await connection.fetchrow(
                "select current_user = session_user as is_itself, current_setting('chatkit_grpc.user_id', true) as who"
            )
            assert row is not None
            assert row["is_itself"]
            assert not row["who"]


async def test_building_it_again_changes_nothing_whoever_does_it_at_the_same_time(database: Database) -> None:
    await asyncio.gather(*(with_row_security(database) for _ in range(5)))
    before = await database.fetch("select oid, polname from pg_policy order by oid")
    await with_row_security(database)
    assert await database.fetch("select oid, polname from pg_policy order by oid") == before
    assert len(before) == len(TABLES)


@asynccontextmanager
async def login(database_url: str, attributes: str, *rights: str) -> AsyncIterator[tuple[str, str]]:
    """A user of the database who is no superuser, and the URL with which he comes."""
    parts = urlsplit(database_url)
    user = f"user_of_{parts.path.removeprefix('/')}"
    await execute(
        database_url,
        f"create role {user} login password 'x' {attributes}",
        *(right.format(user=user) for right in rights),
    )
    try:
        yield user, parts._replace(netloc=f"{user}:x@{parts.netloc.rpartition('@')[2]}").geturl()
    finally:
        await execute(
            database_url,
            f"reassign owned by {user} to current_user",
            f"drop owned by {user}",
            f"drop role {user}",
        )


async def test_a_server_whose_user_may_not_build_it_says_what_to_do(empty_database_url: str) -> None:
    """As in production: the server's user owns the tables, and may create nothing beside."""
    name = urlsplit(empty_database_url).path.removeprefix("/")
    async with login(empty_database_url, "", f"alter database {name} owner to {{user}}") as (user, url):
        settings = replace(IMPATIENT, database_url=url, grpc_listen=ANY_PORT, row_level_security=True)
        with pytest.raises(SettingsError, match="ROW_LEVEL_SECURITY: the database's user must own the tables"):
            async with open_server(settings, ScriptedServer):
                pass
        # What the administrator then does.
        async with open_database(settings_of(url)) as database:
            role = await database.fetchval(ROLE)
        await execute(empty_database_url, f"create role {role} nologin", f"grant {role} to {user}")
        async with open_server(settings, ScriptedServer) as server:
            thread = ThreadMetadata(id="thr_1", created_at=datetime.now())
            await server.store.save_thread(thread, context_of("alice"))
            assert (await server.store.load_thread("thr_1", context_of("alice"))).id == "thr_1"


async def test_the_role_of_one_database_opens_no_other(postgres_url: str, migrated_template: str) -> None:
    async with (
        fresh_database(postgres_url, migrated_template) as one,
        fresh_database(postgres_url, migrated_template) as other,
        open_database(settings_of(one)) as first,
        open_database(settings_of(other)) as second,
    ):
        await with_row_security(first)
        await with_row_security(second)
        role = await first.fetchval(ROLE)
        assert role != await second.fetchval(ROLE)
        async with second.pool.acquire() as connection, connection.transaction():
            await connection.execute(f"set local role {role}")
            with pytest.raises(InsufficientPrivilegeError):
                await connection.fetch("select from chat_sessions")


async def test_a_server_that_doesnt_own_the_tables_builds_no_wall_that_would_shut_it_out(database_url: str) -> None:
    dml = "grant select, insert, update, delete on all tables in schema public to {user}"
    async with login(database_url, "createrole", dml) as (_, url), open_database(settings_of(url)) as database:
        with pytest.raises(SettingsError, match="must own the tables"):
            await with_row_security(database)
        assert not await database.fetch("select from pg_class where relrowsecurity")


async def test_a_reader_of_the_tables_doesnt_stop_everybody(database: Database, database_url: str) -> None:
    """As a pg_dump would be: the wall waits for it for a while, and not with all others behind it."""
    reading = await connect(database_url)
    try:
        transaction = reading.transaction()
        await transaction.start()
        await reading.fetch("select from chat_sessions")
        began = time.monotonic()
        with pytest.raises(DatabaseError):
            await with_row_security(database)
        assert time.monotonic() - began < 8
        await transaction.rollback()
        await with_row_security(database)
    finally:
        await reading.close()


async def test_the_whole_system_works_behind_the_wall(database_url: str) -> None:
    settings = replace(IMPATIENT, row_level_security=True)
    async with open_system(database_url, ScriptedServer, server=settings) as system:
        assert isinstance(system.server.store._database, RowSecurityDatabase)
        thread_id, events = await a_thread(system, "tokens 3")
        assert [event for event in events if event["type"] == "error"] == []
        page = (await post(system, body_of("items.list", thread_id=thread_id))).json()
        ids = [page["data"][-1]["id"]]
        asked: list[tuple[str, dict[str, Any]]] = [
            ("threads.get_by_id", {}),
            ("threads.update", {"title": "new"}),
            ("items.feedback", {"item_ids": ids, "kind": "positive"}),
            ("threads.delete", {}),
        ]
        for operation, params in asked:
            answer = await post(system, body_of(operation, thread_id=thread_id, **params))
            assert answer.status_code == 200, answer.text
        assert await system.server.database.fetch("select from runs") == []
