"""The replay of a run whose log is gone: what it left on the thread, item by item."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from chatkit.types import ThreadCreatedEvent, ThreadItemDoneEvent
from chatkit.types import ThreadStreamEvent as SDKEvent

from server import sdk
from server.changes import logged
from server.context import RequestContext
from server.runs.batches import Said, ending
from server.runs.store import Piece, RunKey, RunStore, run_not_found
from server.store import PostgresStore


async def replay_from_items(
    key: RunKey, run_store: RunStore, store: PostgresStore, context: RequestContext
) -> AsyncGenerator[Said, None]:
    """The end of a run as one who repeats its request is told. Raises what the run failed with."""
    page = (await run_store.read({key: 0})).get(key)
    if page is None:
        raise run_not_found(key.run_id)
    events: list[SDKEvent] = []
    if page.creates_thread:
        thread = await store.load_thread(page.thread_id, context)
        events.append(ThreadCreatedEvent(thread=sdk.thread_response(thread)))
    items = await store.load_items_of_run(page.thread_id, key.run_id, context)
    events += [ThreadItemDoneEvent(item=item) for item in items]
    if events:
        yield Said(key.run_id, Piece(1, len(events), logged(events)))
    for said in ending(key.run_id, page.end_sequence or len(events), page.state, page.error):
        yield said
