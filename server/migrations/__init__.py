"""The database's schema, brought up to date by the numbered SQL files beside this one.

A file that has been released is never edited: what comes later goes into the next file. A change keeps the old server
working beside the new one: first add, and take away only in a release that no longer needs it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
from chatkit_grpc.errors import DatabaseError

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

# Held to the end of the transaction, hence right behind PgBouncer too. The number spells "chatkit".
_LOCK = "select pg_advisory_xact_lock(27980790468667764)"

# Longer than the migrations of another server should take.
_WAIT_FOR_TURN = "set local lock_timeout = '60s'"

# A change that has to wait for a long query would make all others wait behind it.
_WAIT_SHORTLY = "set local lock_timeout = '5s'"

# Asked first, since `create table if not exists` needs the right to create even where the table exists.
_TABLE_EXISTS = "select to_regclass('schema_migrations') is not null"
_CREATE_TABLE = """
create table schema_migrations (
    version integer primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default now()
)
"""
_APPLIED = "select version, name, checksum from schema_migrations order by version"
_RECORD = "insert into schema_migrations (version, name, checksum) values ($1, $2, $3)"


class MigrationError(DatabaseError):
    """The database's schema has another past than this code knows."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema.

    name: the file's. Sample: "0001_threads.sql".
    """

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """What tells that the file was edited."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


async def migrate(connection: Connection, migrations: Sequence[Migration] | None = None) -> None:
    """Apply what is missing, all of it or nothing. Servers that start at once take turns."""
    known = load_migrations() if migrations is None else migrations
    try:
        await _migrate(connection, known)
    except asyncpg.PostgresConnectionError:
        raise
    except asyncpg.PostgresError as error:
        # The first line only: the next, DETAIL, may show the values of a row.
        cause = f"{error.args[0]} ({type(error).__name__})"
    else:
        return
    raise MigrationError(f"The database's schema can't be brought up to date: {cause}.")


async def _migrate(connection: Connection, known: Sequence[Migration]) -> None:
    async with connection.transaction():
        await _take_turn(connection)
        await connection.execute(_WAIT_SHORTLY)
        for migration in _missing(known, await _applied(connection)):
            await connection.execute(migration.sql)
            await connection.execute(_RECORD, migration.version, migration.name, migration.checksum)


async def _take_turn(connection: Connection) -> None:
    await connection.execute(_WAIT_FOR_TURN)
    try:
        await connection.execute(_LOCK)
    except asyncpg.LockNotAvailableError:
        raise MigrationError(
            "The database's schema can't be brought up to date: another process holds the migration lock. "
            "A migration may be running or hanging; pg_locks shows the session with the advisory lock."
        ) from None


@cache
def load_migrations(folder: Path = Path(__file__).parent) -> tuple[Migration, ...]:
    """The migrations of a folder, in order."""
    files = sorted(folder.glob("*.sql"))
    migrations = tuple(Migration(_version(file), file.name, file.read_text("utf-8")) for file in files)
    if [migration.version for migration in migrations] != list(range(1, len(migrations) + 1)):
        raise MigrationError(f"The migrations in {folder} aren't numbered 0001, 0002, … without gaps.")
    return migrations


def _version(file: Path) -> int:
    number = re.match(r"\d{4}(?=_)", file.name)
    if number is None:
        raise MigrationError(f"A migration is named like 0001_threads.sql, not {file.name}.")
    return int(number[0])


async def _applied(connection: Connection) -> Mapping[int, asyncpg.Record]:
    if not await connection.fetchval(_TABLE_EXISTS):
        await connection.execute(_CREATE_TABLE)
    return {row["version"]: row for row in await connection.fetch(_APPLIED)}


def _missing(known: Sequence[Migration], applied: Mapping[int, asyncpg.Record]) -> list[Migration]:
    """What the database lacks. It may be newer than this code: then a newer server runs beside this one."""
    newest = max(applied, default=0)
    for migration in known[:newest]:
        row = applied.get(migration.version)
        if row is None:
            raise MigrationError(f"The database has migrations up to {newest}, but not {migration.name}.")
        if row["checksum"] != migration.checksum:
            raise MigrationError(
                f"The database was migrated by another {row['name']} than this code's {migration.name}. "
                "A migration that has been applied can't be edited: restore it, and add a new one."
            )
    return list(known[newest:])
