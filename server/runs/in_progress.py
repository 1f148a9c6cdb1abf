"""Answers in progress, for those who read a thread while one is made on it: to look is to watch for a moment."""

from __future__ import annotations

import asyncio

from chatkit_grpc.v1.item_pb2 import ThreadItem

from server.runs.partial_answer import pending_items
from server.runs.runs import Runs
from server.runs.store import RunKey, ThreadKey


class InProgress:
    """The items of active runs that aren't stored yet."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def items(self, thread: ThreadKey) -> list[ThreadItem]:
        """What the thread's active run has begun and not finished, wherever it is made."""
        run = self._runs.active_on(thread)
        if run is not None:
            run.last_watched = asyncio.get_running_loop().time()
            return pending_items(await self._runs.all_shown(run)) if run.pending else []
        run_id = await self._runs.run_store.glance(thread)
        if run_id is None:
            return []
        return pending_items(await self._runs.run_store.read_whole(RunKey(thread.user_id, run_id)))

    async def stop(self, thread: ThreadKey) -> None:
        """Stop the run that is active on a thread, if there is one. Raises NotFoundError without the thread."""
        active = await self._runs.run_store.find_active(thread)
        if active is not None:
            await self._runs.stop(RunKey(thread.user_id, active.run_id))
