"""Reading logs as they grow, for many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from server.database import Database
from server.runs.tail import Tail
from server.runs.wakeups import Wakeups
from tests.test_runs import until


async def test_who_comes_while_others_are_served_is_served_next(database: Database) -> None:
    logs = {"a": [1, 2], "b": [1]}
    asked: list[dict[str, int]] = []
    may_answer = asyncio.Event()

    async def read(wanted: Mapping[str, int]) -> dict[str, list[int]]:
        asked.append(dict(wanted))
        await may_answer.wait()
        return {key: logs[key][after:] for key, after in wanted.items() if key in logs}

    async with (
        Wakeups(database, lambda: None) as wakeups,
        Tail("test", read, bool, wakeups, interval=0.01) as tail,
    ):
        first = asyncio.create_task(tail.next_page("a", 0))
        await until(lambda: asked == [{"a": 0}])
        late, further, gone = (
            asyncio.create_task(tail.next_page(key, after)) for key, after in (("b", 0), ("a", 1), ("c", 0))
        )
        await asyncio.sleep(0)
        may_answer.set()
        async with asyncio.timeout(5):
            assert [await first, await late, await further, await gone] == [[1, 2], [1], [2], None]
