"""ChatService: everything that makes the assistant say or do something."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from chatkit.server import ChatKitServer
from chatkit.types import AudioInput
from chatkit_grpc.errors import NotFoundError
from chatkit_grpc.services import LAST_EVENT_ID_KEY
from chatkit_grpc.v1 import chat_service_pb2 as pb
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.event_pb2 import ThreadItemReplacedEvent, ThreadStreamEvent
from google.protobuf.message import Message

from server import sdk
from server.attachments.attachments import require_uploaded
from server.changes import change_of, removal_of
from server.context import RequestContext
from server.limits.allowance import RunAllowance
from server.runs.batches import Said
from server.runs.replay import replay_from_items
from server.runs.run import Run
from server.runs.starting import Start, Starting
from server.runs.store import RunKey, RunStore
from server.runs.watching import Watching
from server.store import PostgresStore

_FOR_THE_ASSISTANT = (pb.AddClientToolOutputRequest, pb.RunActionRequest)
"""What the assistant asked for itself, and takes also where the user may say nothing new."""


class ChatService:
    """Starts runs of the core and streams what they say."""

    def __init__(
        self,
        server: ChatKitServer[RequestContext],
        store: PostgresStore,
        run_store: RunStore,
        starting: Starting,
        watching: Watching,
        allowance: RunAllowance,
    ) -> None:
        self._server = server
        self._store = store
        self._run_store = run_store
        self._starting = starting
        self._watching = watching
        self._allowance = allowance

    async def stream(self, request: Message, context: RequestContext) -> AsyncGenerator[bytes, None]:
        """Start a run for any streaming request, and send its batches until it ends."""
        request_id, request = _without_request_id(request)
        # Parsed before anything is started for it; it isn't begun yet.
        events = sdk.open_stream(self._server, request, context)
        sdk.check_options(self._server, request)
        if isinstance(request, (pb.CreateThreadRequest, pb.AddUserMessageRequest)):
            await require_uploaded(self._server, request.input.attachments, context)
        is_new = isinstance(request, pb.CreateThreadRequest)
        start = Start(
            thread_id=self._store.prepare_thread(context) if is_new else request.thread_id,  # type: ignore[attr-defined]
            request=request,
            request_id=request_id,
            is_new=is_new,
            takes_locked=isinstance(request, _FOR_THE_ASSISTANT),
        )
        async with aclosing(self._watch(start, context, lambda: events)) as responses:
            async for response in responses:
                yield response

    # The core tells these apart by their request; for us they are one.
    create_thread = add_user_message = add_client_tool_output = add_structured_input = run_action = stream

    async def retry_after_item(
        self, request: pb.RetryAfterItemRequest, context: RequestContext
    ) -> AsyncGenerator[bytes, None]:
        """Answer a user's message again."""
        request_id, bare = _without_request_id(request)
        start = Start(thread_id=request.thread_id, request=bare, request_id=request_id)
        try:
            # Before a run is stopped for it; the core would say nothing at all.
            await self._store.require_items(request.thread_id, [request.item_id], context)
        except NotFoundError:
            # The first of two same requests may have deleted it.
            if not await self._starting.is_repeated(start, context):
                raise
        async with aclosing(self._watch(start, context, lambda: self._retry(request, context))) as responses:
            async for response in responses:
                yield response

    async def run_sync_action(
        self, request: pb.RunSyncActionRequest, context: RequestContext
    ) -> pb.RunSyncActionResponse:
        """Run an action and answer with the item it changed."""
        await self._allowance.take(context["user_id"])
        response = await sdk.run_sync_action(self._server, request, context)
        if response.HasField("updated_item"):
            event = ThreadStreamEvent(thread_item_replaced=ThreadItemReplacedEvent(item=response.updated_item))
            await self._store.record_change(request.thread_id, change_of(event), context)
        return response

    async def transcribe(self, request: pb.TranscribeRequest, context: RequestContext) -> pb.TranscribeResponse:
        """Turn speech into text."""
        await self._allowance.take(context["user_id"])
        audio = AudioInput(data=request.audio, mime_type=request.mime_type)
        text = (await self._server.transcribe(audio, context)).text
        await self._allowance.count_tokens(context["user_id"], context.tokens_used)
        return pb.TranscribeResponse(text=text)

    async def _watch(
        self, start: Start, context: RequestContext, events: Callable[[], sdk.EventStream]
    ) -> AsyncGenerator[bytes, None]:
        run = await self._starting.start(start, context, events)
        watching = self._watching.watch_run(run) if isinstance(run, Run) else self._watch_again(run, context)
        async with aclosing(watching):
            async for said in watching:
                yield said.response()

    async def _watch_again(self, run: RunKey, context: RequestContext) -> AsyncGenerator[Said, None]:
        """Watch a run for a repeated request."""
        try:
            async with aclosing(self._watching.watch(run, _last_seen(run, context))) as watching:
                async for said in watching:
                    yield said
        except NotFoundError as error:
            if error.reason != reasons.ERROR_REASON_EVENTS_EXPIRED:
                raise
            async for said in replay_from_items(run, self._run_store, self._store, context):
                yield said

    async def _retry(self, request: pb.RetryAfterItemRequest, context: RequestContext) -> sdk.EventStream:
        """Delete what is answered again, under the run's lease and at once; then let the core answer."""
        message_id, removed = await self._store.retry_after_item(request.thread_id, request.item_id, context)
        if removed:
            await self._store.record_change(request.thread_id, removal_of(removed), context)
        retry = pb.RetryAfterItemRequest(thread_id=request.thread_id, item_id=message_id)
        async with aclosing(sdk.open_stream(self._server, retry, context)) as events:
            async for event in events:
                yield event


def _without_request_id(request: Message) -> tuple[str | None, Message]:
    """The request_id, and what is asked for."""
    bare = type(request)()
    bare.CopyFrom(request)
    bare.ClearField("request_id")
    return request.request_id or None, bare  # type: ignore[attr-defined]


def _last_seen(run: RunKey, context: RequestContext) -> int:
    """The number of the last event that the caller has of a run, by the metadata `last-event-id`."""
    run_id, _, sequence = context.request.headers.get(LAST_EVENT_ID_KEY, "").rpartition(":")
    return int(sequence) if run_id == run.run_id and sequence.isdecimal() and len(sequence) < 19 else 0
