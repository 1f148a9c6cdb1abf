"""What search costs on a million items: `python -m tests.load.bench_search`. It takes about ten minutes.

A thousand users share 50,000 threads of 20 items, the largest some 65,000 items, the median 450; the words of an item
are drawn as those of a language are, a few of them very often. It prints and never fails.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any

import uvloop
from chatkit.types import AssistantMessageContent, AssistantMessageItem
from chatkit_grpc.v1 import thread_service_pb2 as pb

from server.database import Database, open_database
from server.embedded_postgres import embedded_postgres
from server.migrations import load_migrations
from server.row_security import with_row_security
from server.search.search import Search
from server.store import PostgresStore
from tests.database import context_of, settings_of, temporary_folder

USERS, THREADS, ITEMS = 1000, 50_000, 20
WORDS, WORDS_PER_ITEM = 30_000, 40
SEARCHES, INSERTS = 400, 3000
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)

numbers = random.Random(1)
vocabulary = ["".join(numbers.choices("abcdefghijklmnopqrstuvwxyz", k=numbers.randint(3, 10))) for _ in range(WORDS)]
frequencies = list(accumulate(1 / rank for rank in range(1, WORDS + 1)))
owners = list(accumulate(1 / rank**0.8 for rank in range(1, USERS + 1)))


def say() -> str:
    return " ".join(numbers.choices(vocabulary, cum_weights=frequencies, k=WORDS_PER_ITEM))


def threads() -> Iterator[tuple[str, str]]:
    for number, owner in enumerate(numbers.choices(range(USERS), cum_weights=owners, k=THREADS)):
        yield f"user_{owner}", f"thr_{number:06}"


made = list(threads())


async def fill(database: Database) -> None:
    async with database.pool.acquire() as connection:
        await connection.copy_records_to_table(
            "chat_sessions",
            columns=["user_id", "session_id", "title", "next_position"],
            records=((user, thread, " ".join(say().split()[:5]), ITEMS + 1) for user, thread in made),
        )
        for at in range(0, len(made), 1000):
            await connection.copy_records_to_table(
                "chat_messages",
                columns=[
                    *("user_id", "session_id", "message_id", "position"),
                    *("item_type", "sender_type", "content", "timestamp", "item"),
                ],
                records=(
                    (user, thread, f"msg_{place}", place, "assistant_message", "assistant", say(), when(), "{}")
                    for place in range(1, ITEMS + 1)
                    for user, thread in made[at : at + 1000]
                ),
            )


def when() -> datetime:
    return BEGAN + timedelta(seconds=numbers.random() * 10_000_000)


async def timed(name: str, work: Awaitable[Any]) -> None:
    began = time.perf_counter()
    await work
    print(f"{name:52} {time.perf_counter() - began:8.1f} s")


async def measure(name: str, call: Callable[[], Awaitable[Any]], count: int) -> None:
    """Mean, p50 and p99 of a call after another, the first ones not counted."""
    took: list[float] = []
    for number in range(count + 20):
        began = time.perf_counter()
        await call()
        if number >= 20:
            took.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(took, n=100)
    print(f"{name:52} {statistics.mean(took):8.2f} {cuts[49]:8.2f} {cuts[98]:8.2f} ms (mean, p50, p99)")


def searching(search: Search, user: Callable[[], str], query: Callable[[], str]) -> Callable[[], Awaitable[Any]]:
    return lambda: search.find(pb.SearchThreadsRequest(query=query()), context_of(user()))


def anybody() -> str:
    """Whoever has more says more."""
    return f"user_{numbers.choices(range(USERS), cum_weights=owners)[0]}"


def common() -> str:
    return numbers.choice(vocabulary[:5]) + " "


def usual() -> str:
    return numbers.choice(vocabulary[100:2000]) + " "


def adding(store: PostgresStore) -> Callable[[], Awaitable[Any]]:
    async def add() -> None:
        user, thread_id = numbers.choice(made)
        item = AssistantMessageItem(
            id=f"msg_{numbers.getrandbits(64)}", thread_id=thread_id, created_at=datetime.now(),
            content=[AssistantMessageContent(text=say())],
        )  # fmt: skip
        await store.add_thread_item(thread_id, item, context_of(user))

    return add


INDEXES = [
    part
    for part in next(m for m in load_migrations() if m.name.endswith("_search_and_feedback.sql")).sql.split(";\n")
    if "_by_words" in part
]


async def main() -> None:
    """Measure and print."""
    with temporary_folder() as folder:
        async with embedded_postgres(folder) as url, open_database(settings_of(url, timeout=3600)) as database:
            await run(database)


async def run(database: Database) -> None:
    store = PostgresStore(database)
    for name in ("chat_messages_by_words", "chat_sessions_by_words"):
        await database.fetch(f"drop index {name}")
    await timed(f"fill {THREADS * ITEMS:,} items", fill(database))
    await database.fetch("vacuum analyze")
    await measure("add an item, without the index", adding(store), INSERTS)
    for index in INDEXES:
        await timed("build " + index.split()[5], database.fetch(index))
    await database.fetch("vacuum analyze")
    for name in ("chat_messages", "chat_messages_by_words", "chat_sessions_by_words"):
        size = await database.fetchval("select pg_relation_size($1::text::regclass)", name)
        print(f"{name:52} {size / 2**20:8.0f} MiB")
    search = Search(database)
    await measure("a usual word, anybody", searching(search, anybody, usual), SEARCHES)
    await measure("two usual words, anybody", searching(search, anybody, lambda: usual() + usual()), SEARCHES)
    await measure("one of the five most common words, anybody", searching(search, anybody, common), SEARCHES)
    await measure("the first two letters of a word, anybody", searching(search, anybody, lambda: usual()[:2]), SEARCHES)
    await measure(
        "two common words side by side, anybody", searching(search, anybody, lambda: f'"{common()}{common()}"'), 100
    )
    await measure("a usual word, the largest user", searching(search, lambda: "user_0", usual), 200)
    await measure("one of the five, the largest user", searching(search, lambda: "user_0", common), 50)
    await measure("a word that nobody says", searching(search, anybody, lambda: "unheardof"), SEARCHES)
    await measure("add an item, with the index", adding(store), INSERTS)
    await measure("a usual word right after that, anybody", searching(search, anybody, usual), SEARCHES)
    walled = Search(await with_row_security(database))
    await measure("a usual word, anybody, behind the wall", searching(walled, anybody, usual), SEARCHES)


if __name__ == "__main__":
    uvloop.run(main())
