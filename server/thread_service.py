"""ThreadService: reading, watching and managing threads."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from chatkit.server import DEFAULT_PAGE_SIZE, ChatKitServer
from chatkit.types import FeedbackKind, Page
from chatkit_grpc.errors import NotFoundError
from chatkit_grpc.services import ATTEMPTS_KEY
from chatkit_grpc.v1 import thread_service_pb2 as pb
from chatkit_grpc.v1.event_pb2 import ThreadStreamEvent, ThreadUpdatedEvent
from chatkit_grpc.v1.item_pb2 import ThreadItem
from chatkit_grpc.v1.thread_pb2 import ORDER_ASC, Thread

from server import sdk
from server.appending import Appending
from server.auth.tokens import seconds_left, token_expired
from server.changes import change_of
from server.context import RequestContext
from server.feedback import FeedbackLists
from server.limits.deadline import until
from server.runs.in_progress import InProgress
from server.runs.pending_items import item_id
from server.runs.store import ThreadKey
from server.runs.thread_watch import ThreadWatch
from server.search.search import Search
from server.store import PostgresStore


class ThreadService:
    """A user's own threads, and what services may see of all users."""

    def __init__(
        self,
        server: ChatKitServer[RequestContext],
        store: PostgresStore,
        in_progress: InProgress,
        appending: Appending,
        thread_watch: ThreadWatch,
        search: Search,
        feedback: FeedbackLists,
        max_page_size: int,
    ) -> None:
        self._server = server
        self._store = store
        self._in_progress = in_progress
        self._appending = appending
        self._thread_watch = thread_watch
        self._search = search
        self._feedback = feedback
        self._max_page_size = max_page_size

    async def get_thread(self, request: pb.GetThreadRequest, context: RequestContext) -> pb.GetThreadResponse:
        """A thread with the first page of its items."""
        thread = await self._store.load_thread(request.thread_id, context)
        response = pb.GetThreadResponse(thread=sdk.to_message(sdk.thread_response(thread), Thread))
        page = await self.list_items(pb.ListItemsRequest(thread_id=thread.id, order=ORDER_ASC), context)
        items = response.thread.items
        items.data.extend(page.data)
        items.has_more = page.has_more
        if page.HasField("after"):
            items.after = page.after
        return response

    async def list_threads(self, request: pb.ListThreadsRequest, context: RequestContext) -> pb.ListThreadsResponse:
        """A page of the user's threads."""
        request.limit = self._page_size(request.limit)
        page = await self._store.load_threads(
            limit=request.limit,
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
        message = sdk.to_message(sdk.thread_response(thread), Thread)
        change = change_of(ThreadStreamEvent(thread_updated=ThreadUpdatedEvent(thread=message)))
        await self._store.record_change(request.thread_id, change, context)
        return pb.UpdateThreadResponse(thread=message)

    async def delete_thread(self, request: pb.DeleteThreadRequest, context: RequestContext) -> pb.DeleteThreadResponse:
        """Delete a thread with all that is on it, an answer that is being made included."""
        thread = ThreadKey(context["user_id"], request.thread_id)
        try:
            await self._in_progress.stop(thread)
            await self._store.delete_thread(request.thread_id, context)
        except NotFoundError:
            # The same call may have been made before, by a server that died with the answer.
            if ATTEMPTS_KEY not in context.request.headers:
                raise
            await self._store.forget_runs(request.thread_id, context)
        return pb.DeleteThreadResponse()

    async def list_items(self, request: pb.ListItemsRequest, context: RequestContext) -> pb.ListItemsResponse:
        """A page of a thread's items, hidden ones left out, and an answer in progress at the thread's end."""
        request.limit = self._page_size(request.limit)
        # In this order: what is done meanwhile is there twice, and not missing.
        pending = await self._in_progress.items(ThreadKey(context["user_id"], request.thread_id))
        if pending:
            return await self._list_with_pending(request, pending, context)
        return sdk.to_message(await self._load_items(request, context), pb.ListItemsResponse)

    async def _list_with_pending(
        self, request: pb.ListItemsRequest, pending: list[ThreadItem], context: RequestContext
    ) -> pb.ListItemsResponse:
        """A page of the stored items and, at the newer end, of those that aren't stored yet."""
        is_ascending = request.order == ORDER_ASC
        ids = [item_id(item) for item in pending]
        at = ids.index(request.after) if request.after in ids else -1
        if at >= 0 and not await self._is_stored(request, context):
            return await self._list_after_pending(request, pending, at, context)
        response = sdk.to_message(await self._load_items(request, context), pb.ListItemsResponse)
        if not response.has_more if is_ascending else not request.after:
            _add_pending(response, pending[at + 1 :], request, is_ascending=is_ascending)
        return response

    async def _list_after_pending(
        self, request: pb.ListItemsRequest, pending: list[ThreadItem], at: int, context: RequestContext
    ) -> pb.ListItemsResponse:
        """A page after an item that isn't stored: all that is stored lies before it on the thread."""
        cursor = request.after
        if request.order == ORDER_ASC:
            response = pb.ListItemsResponse()
            _add_pending(response, pending[at + 1 :], request, is_ascending=True)
            return response
        request.ClearField("after")
        response = sdk.to_message(await self._load_items(request, context), pb.ListItemsResponse)
        if response.data and item_id(response.data[0]) == cursor:  # it is stored by now
            del response.data[0]
        _add_pending(response, pending[:at], request, is_ascending=False)
        return response

    async def _is_stored(self, request: pb.ListItemsRequest, context: RequestContext) -> bool:
        try:
            await self._store.require_items(request.thread_id, [request.after], context)
        except NotFoundError:
            return False
        return True

    async def _load_items(self, request: pb.ListItemsRequest, context: RequestContext) -> Page[Any]:
        return await self._store.load_visible_items(
            request.thread_id,
            after=request.after or None,
            limit=request.limit,
            order=_order(request.order),
            context=context,
        )

    def _page_size(self, wanted: int) -> int:
        """What is asked for, or as much as there may be: ChatKit's page asks for 9999, whatever a server allows."""
        return min(wanted or DEFAULT_PAGE_SIZE, self._max_page_size)

    async def search_threads(
        self, request: pb.SearchThreadsRequest, context: RequestContext
    ) -> pb.SearchThreadsResponse:
        """A page of the threads on which something is said."""
        return await self._search.find(request, context)

    async def list_feedback(self, request: pb.ListFeedbackRequest, context: RequestContext) -> pb.ListFeedbackResponse:
        """A page of the user's verdicts."""
        return await self._feedback.of_user(request, context)

    async def list_all_feedback(
        self, request: pb.ListAllFeedbackRequest, context: RequestContext
    ) -> pb.ListAllFeedbackResponse:
        """A page of all users' verdicts, for a service."""
        return await self._feedback.of_all(request)

    async def add_feedback(self, request: pb.AddFeedbackRequest, context: RequestContext) -> pb.AddFeedbackResponse:
        """Tell the assistant what the user thinks of items, once it is sure that they are the user's."""
        item_ids = list(request.item_ids)
        await self._store.require_items(request.thread_id, item_ids, context)
        kind: FeedbackKind = "positive" if request.kind == pb.FEEDBACK_KIND_POSITIVE else "negative"
        await self._server.add_feedback(request.thread_id, item_ids, kind, context)
        return pb.AddFeedbackResponse()

    async def append_item(self, request: pb.AppendItemRequest, context: RequestContext) -> pb.AppendItemResponse:
        """Add an item for a service, and let the assistant answer it where that is wanted."""
        return await self._appending.append(request, context)

    async def watch_thread(
        self, request: pb.WatchThreadRequest, context: RequestContext
    ) -> AsyncGenerator[bytes, None]:
        """Everything that happens on a thread."""
        thread = ThreadKey(context["user_id"], request.thread_id)
        changes = self._thread_watch.watch(thread, request.after or None)
        # It has no end of its own, and lasts as long as its token.
        async with aclosing(until(changes, seconds_left(context.auth), token_expired)) as responses:
            async for response in responses:
                yield response


def _add_pending(
    response: pb.ListItemsResponse, pending: list[ThreadItem], request: pb.ListItemsRequest, *, is_ascending: bool
) -> None:
    limit = request.limit
    stored = {item_id(item) for item in response.data}
    fresh = [item for item in pending if item_id(item) not in stored]
    items = [*response.data, *fresh] if is_ascending else [*reversed(fresh), *response.data]
    del response.data[:]
    response.data.extend(items[:limit])
    response.has_more = response.has_more or len(items) > limit
    if response.has_more:
        response.after = item_id(response.data[-1])


def _order(order: int) -> str:
    return "asc" if order == ORDER_ASC else "desc"
