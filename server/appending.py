"""Adding an item to a thread for a service, with or without an answer."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from chatkit.server import ChatKitServer
from chatkit.types import HiddenContextItem, SDKHiddenContextItem, ThreadItem, UserMessageItem
from chatkit_grpc.errors import ChatKitError, ConflictError, ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1 import thread_service_pb2 as pb
from chatkit_grpc.v1.event_pb2 import ThreadItemDoneEvent, ThreadStreamEvent
from chatkit_grpc.v1.item_pb2 import ThreadItem as ThreadItemMessage
from pydantic import ValidationError as PydanticError

from server import sdk
from server.attachments.attachments import require_uploaded
from server.changes import change_of
from server.context import RequestContext
from server.ids import Kind, new_id
from server.records import item_of_message, json_of_item
from server.runs.run import Run
from server.runs.starting import Start, Starting
from server.store import PostgresStore, RecordNotFoundError

_KINDS: dict[str, Kind] = {
    "client_tool_call": "tool_call",
    "workflow": "workflow",
    "task": "task",
    "sdk_hidden_context": "sdk_hidden_context",
}


class Appending:
    """Adds items to threads."""

    def __init__(self, server: ChatKitServer[RequestContext], store: PostgresStore, starting: Starting) -> None:
        self._server = server
        self._store = store
        self._starting = starting

    async def append(self, request: pb.AppendItemRequest, context: RequestContext) -> pb.AppendItemResponse:
        """Add an item, and start a run that answers it where that is wanted.

        Raises RecordNotFoundError without the thread or an attachment, ValidationError for an item that can't be,
        ConflictError where the thread has another item with its id, and what Starting raises.
        """
        item = await self._item_of(_completed(request, context["user_id"]), context)
        if request.start_run:
            return await self._append_and_start(request, item, context)
        if not await self._store.append_item(request.thread_id, item, _told(item), context):
            item = await self._same_item(request, item, context)
        return pb.AppendItemResponse(item=sdk.to_message(item, ThreadItemMessage))

    async def _append_and_start(
        self, request: pb.AppendItemRequest, item: ThreadItem, context: RequestContext
    ) -> pb.AppendItemResponse:
        thread_id = request.thread_id
        bare = pb.AppendItemRequest(thread_id=thread_id, item=request.item, start_run=True)
        # An item that has an id is answered once, however often and from however many sides that is asked for.
        request_id = request.request_id or _request_id(thread_id, item.id)
        start = Start(thread_id=thread_id, request=bare, request_id=request_id, needs_watcher=False)
        stored = await self._stored(thread_id, item.id, context)
        if stored is not None and not await self._starting.is_repeated(start, context):
            raise _exists(item.id)
        try:
            run = await self._starting.start(
                start, context, lambda: sdk.answer_item(self._server, thread_id, item, context)
            )
        except ValidationError as error:
            if error.reason == reasons.ERROR_REASON_REQUEST_ID_REUSED and not request.request_id:
                raise _exists(item.id) from None
            raise
        message = sdk.to_message(stored or item, ThreadItemMessage)
        return pb.AppendItemResponse(item=message, run_id=run.id if isinstance(run, Run) else run.run_id)

    async def _stored(self, thread_id: str, item_id: str, context: RequestContext) -> ThreadItem | None:
        try:
            return await self._store.load_item(thread_id, item_id, context)
        except RecordNotFoundError:
            return None

    async def _item_of(self, message: ThreadItemMessage, context: RequestContext) -> ThreadItem:
        try:
            item = item_of_message(message)
        except PydanticError as error:
            problems = error.errors(include_input=False, include_url=False, include_context=False)
            raise ValidationError.at("$.params.item", problems[0]["msg"]) from None
        if isinstance(item, UserMessageItem):
            await require_uploaded(self._server, [attachment.id for attachment in item.attachments], context)
            item.attachments = [
                (await self._store.load_attachment(attachment.id, context)).model_copy(
                    update={"thread_id": item.thread_id}
                )
                for attachment in item.attachments
            ]
        return item

    async def _same_item(self, request: pb.AppendItemRequest, item: ThreadItem, context: RequestContext) -> ThreadItem:
        """The item that is there already, if it is the very same. Otherwise raises why it wasn't added."""
        await self._store.load_thread(request.thread_id, context)
        stored = await self._store.load_item(request.thread_id, item.id, context)
        if not _members(request.item).HasField("created_at"):
            item.created_at = stored.created_at
        if json_of_item(stored) != json_of_item(item):
            raise _exists(item.id)
        return stored


def _completed(request: pb.AppendItemRequest, user_id: str) -> ThreadItemMessage:
    """The item with all that the caller may leave out."""
    item = ThreadItemMessage()
    item.CopyFrom(request.item)
    members = _members(item)
    if members.thread_id not in {"", request.thread_id}:
        raise ValidationError.at("$.params.item.thread_id", "expected the thread_id of the request, or none")
    members.thread_id = request.thread_id
    members.id = members.id or _new_id(request, user_id)
    if not members.HasField("created_at"):
        members.created_at.FromDatetime(datetime.now(UTC))
    return item


def _members(item: ThreadItemMessage) -> Any:
    """The message of the item's kind, which has the id, the time and so on."""
    kind = item.WhichOneof("item")
    if kind is None or kind == "unknown":
        raise ValidationError.at("$.params.item", "expected an item of a kind that this server knows")
    return getattr(item, kind)


def _new_id(request: pb.AppendItemRequest, user_id: str) -> str:
    """An id that nobody else has; the same one for a repeated request."""
    new = new_id(_KINDS.get(str(request.item.WhichOneof("item")), "message"))
    if not request.request_id:
        return new
    prefix = new.partition("_")[0]
    asked = "\0".join((user_id, request.thread_id, request.request_id))
    return f"{prefix}_{hashlib.sha256(asked.encode()).hexdigest()[:32]}"


def _request_id(thread_id: str, item_id: str) -> str:
    asked = "\0".join((thread_id, item_id))
    return f"item-{hashlib.sha256(asked.encode()).hexdigest()}"


def _told(item: ThreadItem) -> bytes:
    """What those who watch are told: of hidden items nothing."""
    if isinstance(item, (HiddenContextItem, SDKHiddenContextItem)):
        return change_of()
    message = sdk.to_message(item, ThreadItemMessage)
    return change_of(ThreadStreamEvent(thread_item_done=ThreadItemDoneEvent(item=message)))


def _exists(item_id: str) -> ChatKitError:
    return ConflictError(
        "The thread has another item with this id.",
        reason=reasons.ERROR_REASON_ITEM_EXISTS,
        metadata={"item_id": item_id},
    )
