"""Bringing the schema up to date, whatever the past of the database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
from chatkit_grpc.errors import DatabaseError

from server import migrations
from server.database import open_database
from server.migrations import Migration, MigrationError, load_migrations, migrate
from tests.database import settings_of, temporary_folder

FIRST = Migration(1, "0001_first.sql", "create table first (id int); insert into first values (1)")
SECOND = Migration(2, "0002_second.sql", "alter table first add column name text not null default 'x'")


async def run(url: str, *migrations: Migration) -> None:
    connection = await asyncpg.connect(url)
    try:
        await migrate(connection, migrations or None)
    finally:
        await connection.close()


async def value(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_servers_that_start_at_once_take_turns(empty_database_url: str) -> None:
    await asyncio.gather(*(run(empty_database_url) for _ in range(5)))
    assert await value(empty_database_url, "select count(*) from schema_migrations") == len(load_migrations())
    assert await value(empty_database_url, "select count(*) from chat_messages") == 0


async def test_a_lock_that_nobody_gives_back_is_named(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "_WAIT_FOR_TURN", "set local lock_timeout = '100ms'")
    holder = await asyncpg.connect(empty_database_url)
    try:
        async with holder.transaction():
            await holder.execute(migrations._LOCK)
            with pytest.raises(MigrationError, match="another process holds the migration lock"):
                await run(empty_database_url, FIRST)
    finally:
        await holder.close()
    await run(empty_database_url, FIRST)
    assert await value(empty_database_url, "select count(*) from first") == 1


async def test_only_what_is_missing_is_applied(empty_database_url: str) -> None:
    await run(empty_database_url, FIRST)
    await run(empty_database_url, FIRST, SECOND)
    await run(empty_database_url, FIRST, SECOND)
    assert await value(empty_database_url, "select string_agg(name, ',') from first") == "x"


async def test_an_edited_migration_is_refused(empty_database_url: str) -> None:
    await run(empty_database_url, FIRST)
    edited = Migration(1, FIRST.name, FIRST.sql + " -- better")
    with pytest.raises(MigrationError, match=r"can't be edited"):
        await run(empty_database_url, edited)


async def test_a_migration_that_was_left_out_is_refused(empty_database_url: str) -> None:
    await run(empty_database_url, FIRST, SECOND)
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("delete from schema_migrations where version = 1")
    await connection.close()
    with pytest.raises(MigrationError, match=r"up to 2, but not 0001_first\.sql"):
        await run(empty_database_url, FIRST, SECOND)


async def test_a_database_newer_than_the_code_is_accepted(empty_database_url: str) -> None:
    await run(empty_database_url, FIRST, SECOND)
    await run(empty_database_url, FIRST)


async def test_a_migration_that_fails_leaves_nothing_behind(empty_database_url: str) -> None:
    broken = Migration(2, "0002_broken.sql", "create table second (id int); select 1 / 0")
    with pytest.raises(MigrationError, match="division by zero"):
        await run(empty_database_url, FIRST, broken)
    assert await value(empty_database_url, "select to_regclass('first')") is None


async def test_what_a_row_holds_is_not_told_when_a_migration_fails(empty_database_url: str) -> None:
    secrets = Migration(1, "0001_a.sql", "create table a (t text); insert into a values ('secret'), ('secret')")
    unique = Migration(2, "0002_b.sql", "create unique index on a (t)")
    with pytest.raises(MigrationError) as caught:
        await run(empty_database_url, secrets, unique)
    assert "UniqueViolationError" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


async def test_a_role_that_may_not_create_can_start_when_all_is_applied(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("set role pg_read_all_data")
        await migrate(connection)
    finally:
        await connection.close()


@pytest.mark.parametrize("names", [["0001_a.sql", "0003_b.sql"], ["0001_a.sql", "0001_b.sql"], ["first.sql"]])
def test_files_that_are_not_numbered_in_a_row_are_refused(names: list[str]) -> None:
    with temporary_folder() as folder:
        for name in names:
            (folder / name).write_text("select 1")
        with pytest.raises(MigrationError):
            load_migrations(folder)


def test_the_line_ends_of_a_checkout_do_not_count_as_an_edit() -> None:
    def checksum(folder: Path, line_end: bytes) -> str:
        (folder / "0001_a.sql").write_bytes(b"select 1;" + line_end)
        load_migrations.cache_clear()
        return load_migrations(folder)[0].checksum

    with temporary_folder() as folder:
        assert checksum(folder, b"\n") == checksum(folder, b"\r\n")


async def test_a_database_that_is_not_there_is_named_without_its_password(postgres_url: str) -> None:
    url = "postgresql://alice:pass-word@127.0.0.1:1/chat"
    with pytest.raises(DatabaseError) as caught:
        async with open_database(settings_of(url)):
            pass
    assert str(caught.value).startswith("DATABASE_URL: can't connect to PostgreSQL at 127.0.0.1:1/chat (")
    assert "pass-word" not in str(caught.value)
    assert caught.value.code == "DATABASE_UNAVAILABLE"
