"""The second wall between users: PostgreSQL itself shows the store one user's rows, whatever a statement says.

It holds behind PgBouncer too, since who is asked for is said inside the transaction. It costs three round trips for
each statement of the store (figures in docs/security.md), and is off unless ROW_LEVEL_SECURITY says otherwise.
"""

from __future__ import annotations

from pathlib import Path

from chatkit_grpc.environment import SettingsError
from chatkit_grpc.errors import DatabaseError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server.database import Database, PoolConnection, Record, translated

_SETUP = Path(__file__).with_name("row_security.sql")
# One wall at a time: servers that start together take turns. The number spells "rows".
_TAKE_TURNS = "select pg_advisory_xact_lock(1919907699)"
_BECOME_USER = """
select set_config('chatkit_grpc.user_id', $1, true), set_config('role', 'chatkit_grpc_user_' || oid, true)
from pg_database where datname = current_database()
"""
# What the store does with each table, on no row.
_TRY = """
select from chat_sessions
left join chat_messages using (user_id, session_id)
left join attachments using (user_id, session_id)
where user_id = $1
"""


class RowSecurityDatabase(Database):
    """A database of which each statement sees one user's rows: those of its first value."""

    async def _run(self, connection: PoolConnection, statement: str, values: tuple[object, ...]) -> list[Record]:
        async with connection.transaction():
            await connection.fetch(_BECOME_USER, values[0])
            return await super()._run(connection, statement, values)


async def with_row_security(database: Database) -> RowSecurityDatabase:
    """The database behind the wall, which is built where it isn't there yet.

    Raises SettingsError where the server's user may not build it, and DatabaseError.
    """
    walled = RowSecurityDatabase(database.pool, database.url, database.description, database.timeout)
    try:
        await translated(_build(database))
        await walled.fetch(_TRY, "")
    except DatabaseError as error:
        if error.reason == reasons.ERROR_REASON_DATABASE_UNAVAILABLE:
            raise
        raise SettingsError(
            "ROW_LEVEL_SECURITY: the database's user must own the tables and may create a role, or be given one: "
            f"server/row_security.sql says how ({error.metadata.get('sqlstate')})"
        ) from None
    return walled


async def _build(database: Database) -> None:
    async with database.pool.acquire() as connection, connection.transaction():
        await connection.execute(_TAKE_TURNS)
        await connection.execute(_SETUP.read_text("utf-8"))
