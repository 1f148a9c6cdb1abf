"""What the store costs, and what the second wall between users adds: `python -m tests.load.bench_store`.

It prints and never fails. Both stores take turns on the same database, so that a noisy machine is noisy for both.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import uvloop
from chatkit.types import AssistantMessageContent, AssistantMessageItem, ThreadMetadata

from server.database import open_database
from server.embedded_postgres import embedded_postgres
from server.row_security import with_row_security
from server.store import PostgresStore
from tests.database import context_of, settings_of, temporary_folder

ROUNDS = 15
CALLS = 300
AT_ONCE = 10
THREADS, ITEMS = 50, 40
CONTEXT = context_of("alice")

Operation = Callable[[PostgresStore, int], Awaitable[object]]


def item(number: int) -> AssistantMessageItem:
    """A message of a few hundred bytes."""
    content = [AssistantMessageContent(text="word " * 60)]
    return AssistantMessageItem(id=f"msg_{number}", thread_id="thr_0", created_at=datetime.now(), content=content)


OPERATIONS: dict[str, Operation] = {
    "page of 20 items": lambda store, n: store.load_visible_items(f"thr_{n % THREADS}", None, 20, "desc", CONTEXT),
    "page of 20 threads": lambda store, _: store.load_threads(20, None, "desc", CONTEXT),
    "add an item": lambda store, n: store.add_thread_item(f"thr_{n % THREADS}", item(n % ITEMS), CONTEXT),
}


async def per_second(store: PostgresStore, operation: Operation) -> float:
    """How often an operation is done in a second, by several at once."""

    async def work(offset: int) -> None:
        for number in range(CALLS // AT_ONCE):
            await operation(store, offset * 7 + number)

    began = time.perf_counter()
    await asyncio.gather(*(work(offset) for offset in range(AT_ONCE)))
    return CALLS / (time.perf_counter() - began)


async def fill(store: PostgresStore) -> None:
    """Threads with items, for pages to be taken from."""
    for number in range(THREADS):
        await store.save_thread(ThreadMetadata(id=f"thr_{number}", created_at=datetime.now()), CONTEXT)
        for at in range(ITEMS):
            await store.add_thread_item(f"thr_{number}", item(at), CONTEXT)


async def main() -> None:
    """Measure and print."""
    with temporary_folder() as folder:
        async with embedded_postgres(folder) as url, open_database(settings_of(url)) as database:
            plain, walled = PostgresStore(database), PostgresStore(await with_row_security(database))
            await fill(plain)
            print(f"{'':20} {'plain':>10} {'behind the wall':>17}   ratio   per second, medians of {ROUNDS} rounds")
            for name, operation in OPERATIONS.items():
                rates: tuple[list[float], list[float]] = ([], [])
                for _ in range(ROUNDS):
                    for store, found in zip((plain, walled), rates, strict=True):
                        found.append(await per_second(store, operation))
                before, after = (statistics.median(found) for found in rates)
                print(f"{name:20} {before:10,.0f} {after:17,.0f}   {after / before:.2f}")


if __name__ == "__main__":
    uvloop.run(main())
