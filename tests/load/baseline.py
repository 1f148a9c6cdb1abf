"""What people run without this project: the SDK inside a web server, as its docs show, with a store in memory.

`python -m tests.load.baseline PORT`
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import uvicorn
from chatkit.server import StreamingResult
from chatkit.store import NotFoundError, Store
from chatkit.types import Attachment, Page, ThreadItem, ThreadMetadata
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.load.scripted import create_server

Context = dict[str, Any]
T = TypeVar("T", ThreadMetadata, ThreadItem)


class MemoryStore(Store[Context]):
    """Dictionaries, as in the samples of the SDK."""

    def __init__(self) -> None:
        self._threads: dict[str, ThreadMetadata] = {}
        self._items: dict[str, dict[str, ThreadItem]] = {}
        self._attachments: dict[str, Attachment] = {}

    async def load_thread(self, thread_id: str, context: Context) -> ThreadMetadata:
        return _found(self._threads, thread_id).model_copy(deep=True)

    async def save_thread(self, thread: ThreadMetadata, context: Context) -> None:
        self._threads[thread.id] = thread.model_copy(deep=True)

    async def load_threads(self, limit: int, after: str | None, order: str, context: Context) -> Page[ThreadMetadata]:
        return _page(list(self._threads.values()), limit, after, order)

    async def delete_thread(self, thread_id: str, context: Context) -> None:
        self._threads.pop(thread_id, None)
        self._items.pop(thread_id, None)

    async def load_thread_items(
        self, thread_id: str, after: str | None, limit: int, order: str, context: Context
    ) -> Page[ThreadItem]:
        return _page(list(self._items.get(thread_id, {}).values()), limit, after, order)

    async def add_thread_item(self, thread_id: str, item: ThreadItem, context: Context) -> None:
        self._items.setdefault(thread_id, {})[item.id] = item.model_copy(deep=True)

    async def save_item(self, thread_id: str, item: ThreadItem, context: Context) -> None:
        await self.add_thread_item(thread_id, item, context)

    async def load_item(self, thread_id: str, item_id: str, context: Context) -> ThreadItem:
        return _found(self._items.get(thread_id, {}), item_id)

    async def delete_thread_item(self, thread_id: str, item_id: str, context: Context) -> None:
        self._items.get(thread_id, {}).pop(item_id, None)

    async def save_attachment(self, attachment: Attachment, context: Context) -> None:
        self._attachments[attachment.id] = attachment

    async def load_attachment(self, attachment_id: str, context: Context) -> Attachment:
        if attachment_id not in self._attachments:
            raise NotFoundError(attachment_id)
        return self._attachments[attachment_id]

    async def delete_attachment(self, attachment_id: str, context: Context) -> None:
        self._attachments.pop(attachment_id, None)


def _found(things: dict[str, T], thing_id: str) -> T:
    if thing_id not in things:
        raise NotFoundError(thing_id)
    return things[thing_id]


def _page(things: list[T], limit: int, after: str | None, order: str) -> Page[T]:
    things = sorted(things, key=lambda thing: thing.created_at, reverse=order == "desc")
    start = next((place + 1 for place, thing in enumerate(things) if thing.id == after), 0)
    data = things[start : start + limit]
    has_more = start + limit < len(things)
    return Page(data=data, has_more=has_more, after=data[-1].id if has_more else None)


SERVER = create_server(MemoryStore())


async def chatkit(request: Request) -> Response:
    """The endpoint, word for word as in the docs of the SDK."""
    result = await SERVER.process(await request.body(), context={})
    if isinstance(result, StreamingResult):
        return StreamingResponse(result, media_type="text/event-stream")
    return Response(content=result.json, media_type="application/json")


if __name__ == "__main__":
    app = Starlette(routes=[Route("/api/chatkit", chatkit, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning", backlog=2048)
