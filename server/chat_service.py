"""ChatService: every call that makes the assistant say or do something."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from chatkit.server import ChatKitServer
from chatkit.types import AudioInput
from chatkit_grpc.v1 import chat_service_pb2 as pb
from google.protobuf.message import Message

from server import sdk
from server.context import RequestContext
from server.runs import Runs
from server.store import PostgresStore


class ChatService:
    """Starts runs of the core and streams what they say."""

    def __init__(self, server: ChatKitServer[RequestContext], store: PostgresStore, runs: Runs) -> None:
        self._server = server
        self._store = store
        self._runs = runs

    async def stream(self, request: Message, context: RequestContext) -> AsyncGenerator[bytes, None]:
        """Start a run for any streaming request, and send its batches until it ends."""
        run = self._runs.start(sdk.open_stream(self._server, request, context))
        async with aclosing(run.watch()) as responses:
            async for response in responses:
                yield response

    # The core tells these apart by their request; for us they are one.
    create_thread = add_user_message = add_client_tool_output = add_structured_input = run_action = stream

    async def retry_after_item(
        self, request: pb.RetryAfterItemRequest, context: RequestContext
    ) -> AsyncGenerator[bytes, None]:
        """Answer a user's message again. The core says nothing at all where the item isn't there, so this does."""
        await self._store.require_items(request.thread_id, [request.item_id], context)
        async with aclosing(self.stream(request, context)) as responses:
            async for response in responses:
                yield response

    async def run_sync_action(
        self, request: pb.RunSyncActionRequest, context: RequestContext
    ) -> pb.RunSyncActionResponse:
        """Run an action and answer with the item it changed."""
        return await sdk.run_sync_action(self._server, request, context)

    async def transcribe(self, request: pb.TranscribeRequest, context: RequestContext) -> pb.TranscribeResponse:
        """Turn speech into text."""
        audio = AudioInput(data=request.audio, mime_type=request.mime_type)
        return pb.TranscribeResponse(text=(await self._server.transcribe(audio, context)).text)
