"""ThreadService: reading and managing threads. It asks the store; the assistant is told only of feedback."""

from __future__ import annotations

from chatkit.server import DEFAULT_PAGE_SIZE, ChatKitServer
from chatkit.types import FeedbackKind, Page
from chatkit_grpc.v1 import thread_service_pb2 as pb
from chatkit_grpc.v1.thread_pb2 import ORDER_ASC, Thread

from server import sdk
from server.context import RequestContext
from server.store import PostgresStore


class ThreadService:
    """A user's own threads."""

    def __init__(self, server: ChatKitServer[RequestContext], store: PostgresStore) -> None:
        self._server = server
        self._store = store

    async def get_thread(self, request: pb.GetThreadRequest, context: RequestContext) -> pb.GetThreadResponse:
        """A thread with the first page of its items."""
        thread = await self._store.load_thread(request.thread_id, context)
        items = await self._store.load_visible_items(thread.id, None, DEFAULT_PAGE_SIZE, "asc", context)
        return pb.GetThreadResponse(thread=sdk.to_message(sdk.thread_response(thread, items), Thread))

    async def list_threads(self, request: pb.ListThreadsRequest, context: RequestContext) -> pb.ListThreadsResponse:
        """A page of the user's threads."""
        page = await self._store.load_threads(
            limit=request.limit or DEFAULT_PAGE_SIZE,
            after=request.after or None,
            order=_order(request.order),
            context=context,
        )
        threads = Page(
            data=[sdk.thread_response(thread) for thread in page.data], has_more=page.has_more, after=page.after
        )
        return sdk.to_message(threads, pb.ListThreadsResponse)

    async def update_thread(self, request: pb.UpdateThreadRequest, context: RequestContext) -> pb.UpdateThreadResponse:
        """Rename a thread."""
        thread = await self._store.rename_thread(request.thread_id, request.title, context)
        return pb.UpdateThreadResponse(thread=sdk.to_message(sdk.thread_response(thread), Thread))

    async def delete_thread(self, request: pb.DeleteThreadRequest, context: RequestContext) -> pb.DeleteThreadResponse:
        """Delete a thread with all that is on it."""
        await self._store.delete_thread(request.thread_id, context)
        return pb.DeleteThreadResponse()

    async def list_items(self, request: pb.ListItemsRequest, context: RequestContext) -> pb.ListItemsResponse:
        """A page of a thread's items, hidden ones left out."""
        page = await self._store.load_visible_items(
            request.thread_id,
            after=request.after or None,
            limit=request.limit or DEFAULT_PAGE_SIZE,
            order=_order(request.order),
            context=context,
        )
        return sdk.to_message(page, pb.ListItemsResponse)

    async def add_feedback(self, request: pb.AddFeedbackRequest, context: RequestContext) -> pb.AddFeedbackResponse:
        """Tell the assistant what the user thinks of items, once it is sure that they are the user's."""
        item_ids = list(request.item_ids)
        await self._store.require_items(request.thread_id, item_ids, context)
        kind: FeedbackKind = "positive" if request.kind == pb.FEEDBACK_KIND_POSITIVE else "negative"
        await self._server.add_feedback(request.thread_id, item_ids, kind, context)
        return pb.AddFeedbackResponse()


def _order(order: int) -> str:
    return "asc" if order == ORDER_ASC else "desc"
