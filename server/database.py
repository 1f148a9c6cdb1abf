"""The database as the server uses it: a pool of connections, and one place that says what its errors mean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import asyncpg
from chatkit_grpc.errors import DatabaseError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server.embedded_postgres import embedded_postgres
from server.migrations import migrate
from server.settings import Settings
from server.text_repair import whole

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    # The classes are generic in their stubs only.
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
    PoolConnection: TypeAlias = PoolConnectionProxy[asyncpg.Record]
else:
    Connection = PoolConnection = asyncpg.Connection

Record = asyncpg.Record
"""A row."""

T = TypeVar("T")

PING_TIMEOUT_SECONDS = 5.0
_CLOSE_TIMEOUT_SECONDS = 5.0

_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""All that asyncpg raises where the database is to blame. A TimeoutError is an OSError."""

_LOST = (
    ConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InternalClientError,  # a statement sent to a connection whose end hasn't been noticed yet
)

_UNREACHABLE = (
    *_LOST,
    OSError,
    asyncpg.TooManyConnectionsError,
    asyncpg.CannotConnectNowError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # the database takes no connections for now
    asyncpg.InvalidCatalogNameError,  # it is gone
    asyncpg.InvalidAuthorizationSpecificationError,  # it doesn't let us in, or not any more
    asyncpg.QueryCanceledError,  # the server's statement_timeout
    asyncpg.LockNotAvailableError,  # the server's lock_timeout
    asyncpg.IdleInTransactionSessionTimeoutError,
)


class Database:
    """A pool of connections to one database.

    A connection that gets lost fails the one request that was using it; the pool opens another for the next.
    JSON goes in and comes out as text: the callers parse it, and what they don't look into stays as it was.

    pool: for what the methods here don't do. Use it under `translated`. A connection goes back as it is, without a
        round trip that would reset it: change nothing that lives as long as a session (SET, LISTEN, advisory locks).
    url: where it is, password included.
    description: where it is, for people to read.
    timeout: how many seconds a statement may take, the wait for a connection included.
    """

    def __init__(self, pool: Pool, url: str, description: str, timeout: float) -> None:
        self.pool = pool
        self.url = url
        self.description = description
        self.timeout = timeout

    async def fetch(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """All rows of a statement."""
        return await translated(self._fetch(statement, values, self.timeout))

    async def fetchrow(self, statement: str, *values: object) -> asyncpg.Record | None:
        """The first row of a statement, if there is one."""
        rows = await self.fetch(statement, *values)
        return rows[0] if rows else None

    async def fetchval(self, statement: str, *values: object) -> Any:
        """The first value of the first row of a statement, or None."""
        row = await self.fetchrow(statement, *values)
        return None if row is None else row[0]

    async def ping(self) -> None:
        """Raise DatabaseError unless the database answers soon."""
        await translated(self._fetch("select 1", (), PING_TIMEOUT_SECONDS))

    async def _fetch(self, statement: str, values: tuple[object, ...], seconds: float) -> list[asyncpg.Record]:
        # The limit is for a connection to become free and for the answer together. The pool gets it too, for taking
        # the connection back: a server that fell silent doesn't answer to a cancel either.
        try:
            async with asyncio.timeout(seconds), self.pool.acquire(timeout=seconds) as connection:
                return await self._run(connection, statement, values)
        except _LOST:
            # The others are likely lost too. They are replaced before their next use, and fail nobody else.
            await self.pool.expire_connections()
            raise

    async def _run(
        self, connection: PoolConnection, statement: str, values: tuple[object, ...]
    ) -> list[asyncpg.Record]:
        return await connection.fetch(statement, *map(storable, values))


class PooledConnection(Connection):
    """A connection that goes back to the pool without a round trip, and goes away without a word."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        """What resets the session between two uses: nothing, since nothing here changes one."""
        return ""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # asyncpg's
        """Say goodbye to the server, if it is there. The pool does this in a task that nobody awaits."""
        try:
            await super().close(timeout=timeout)
        except (*_LOST, OSError):
            self.terminate()


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The database of the settings, its schema up to date. Without DATABASE_URL it is an embedded PostgreSQL."""
    async with AsyncExitStack() as stack:
        if settings.database_url is None:
            url = await stack.enter_async_context(embedded_postgres(settings.data_dir))
        else:
            url = settings.database_url
        description = settings.database_description
        await _migrate(url, description, settings)
        pool = await _reached(_open_pool(url, settings, settings.database_pool_size), description)
        try:
            yield Database(pool, url, description, settings.database_timeout_seconds)
        finally:
            await _close(pool)


@asynccontextmanager
async def open_beside(database: Database, settings: Settings, connections: int) -> AsyncIterator[Database]:
    """The same database over connections of its own, for what must not wait while all others are in use.

    Nor for long on one that fell silent: it takes as long again to give that up.
    """
    seconds = min(settings.database_timeout_seconds, settings.lease_seconds)
    pool = await _reached(_open_pool(database.url, settings, connections), database.description)
    try:
        yield Database(pool, database.url, database.description, seconds)
    finally:
        await _close(pool)


async def translated(work: Awaitable[T]) -> T:
    """The result of work on the database, its errors made ours."""
    try:
        return await work
    except _FAILURES as error:
        failure = database_error(error)
    # Not inside the except block: the driver's error shows the values of the row, and would come along as context.
    raise failure


def database_error(error: Exception) -> DatabaseError:
    """What a driver's error means. It tells nothing of what is stored."""
    if _is_unreachable(error):
        return DatabaseError("The database can't be reached.", reason=reasons.ERROR_REASON_DATABASE_UNAVAILABLE)
    name, sqlstate = type(error).__name__, getattr(error, "sqlstate", None)
    if sqlstate is None:
        return DatabaseError(f"The database failed ({name}).")
    return DatabaseError(f"The database failed ({name}, {sqlstate}).", metadata={"sqlstate": sqlstate})


def is_about_the_schema(error: DatabaseError) -> bool:
    """Whether a table or a column isn't there, or may not be read."""
    return error.metadata.get("sqlstate") in {"42P01", "42703", "42501"}


def _is_unreachable(error: Exception) -> bool:
    if isinstance(error, asyncpg.InterfaceError):
        # Raised where the connection went away between two statements, and once the pool is closing.
        return "closed" in str(error) or "closing" in str(error)
    return isinstance(error, _UNREACHABLE)


def storable(value: object) -> object:
    """A value without what PostgreSQL's text can't hold: half an emoji, and NUL.

    They come in ids, titles and what is said; in JSON both are gone by now.
    """
    if isinstance(value, str):
        return whole(value).replace("\0", "\ufffd")
    if isinstance(value, list):
        return [storable(element) for element in value]
    return value


async def _open_pool(url: str, settings: Settings, connections: int) -> Pool:
    return await asyncpg.create_pool(
        url,
        min_size=1,
        max_size=connections,
        timeout=settings.database_timeout_seconds,
        command_timeout=settings.database_timeout_seconds,
        connection_class=PooledConnection,
        **_statement_cache(settings),
    )


async def _migrate(url: str, description: str, settings: Settings) -> None:
    # No command_timeout: building an index takes as long as it takes.
    connecting = asyncpg.connect(url, timeout=settings.database_timeout_seconds, **_statement_cache(settings))
    connection = await _reached(connecting, description)
    try:
        await translated(migrate(connection))
    finally:
        await connection.close(timeout=_CLOSE_TIMEOUT_SECONDS)


def _statement_cache(settings: Settings) -> dict[str, Any]:
    # PgBouncer in transaction mode gives each transaction another session, where the prepared statements aren't.
    return {} if settings.database_statement_cache else {"statement_cache_size": 0}


async def _reached(connecting: Awaitable[T], description: str) -> T:
    """The result of connecting for the first time, when the one who reads the error is the one who set the URL."""
    try:
        return await connecting
    except (asyncpg.PostgresError, OSError) as error:
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, ValueError) as error:
        cause = type(error).__name__  # its text may quote the URL
    raise DatabaseError(
        f"DATABASE_URL: can't connect to {description} ({cause}).",
        reason=reasons.ERROR_REASON_DATABASE_UNAVAILABLE,
    )


async def _close(pool: Pool) -> None:
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
            await pool.close()
    except TimeoutError:
        pool.terminate()
