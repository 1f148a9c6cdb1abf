"""A user's conversation while something is broken: what was sent, who watches, and what may be missing afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from chatkit_grpc.errors import from_rpc_error
from chatkit_grpc.services import LAST_EVENT_ID_KEY, USER_HEADER
from chatkit_grpc.v1 import chat_service_pb2, chat_service_pb2_grpc, run_service_pb2, run_service_pb2_grpc

from tests.faults.call import Call
from tests.faults.page import Page
from tests.faults.rig import Rig, Server
from tests.faults.violation import ViolationError
from tests.faults.witness import Witness

_STREAM_SECONDS = 120.0
_UNARY_SECONDS = 15.0


class Conversation:
    """One user with one thread (or more, where the first message is sent more than once).

    forgiven: by run, from when to when (of time.monotonic()) tokens came that may be missing.
    """

    def __init__(self, rig: Rig, thread_id: str = "") -> None:
        self.rig = rig
        self.user = rig.new_user()
        self.witnesses: list[Witness] = []
        self.forgiven: dict[str, list[tuple[float, float]]] = {}
        self._thread_id = thread_id
        self._watchers: list[Page | Call] = []

    @property
    def thread_id(self) -> str:
        """The thread, once somebody has been told of it."""
        return self._thread_id or next((w.thread_id for w in self.witnesses if w.thread_id), "")

    async def say(
        self,
        text: str,
        *,
        key: str | None = None,
        frame: str | None = None,
        receive_buffer: int | None = None,
    ) -> Page:
        """Send a message as a page does. key: its Idempotency-Key. frame: the page's instance."""
        page = Page(self._witness("page", None), receive_buffer=receive_buffer)
        await self._post(page, self._body(text), key, frame)
        return page

    async def repeat(
        self, first: Page, *, key: str | None = None, frame: str | None = None, after: Witness | None = None
    ) -> Page:
        """Send the very request of a page once more. after: whose last event it goes on from."""
        page = Page(self._witness("page again", after))
        await self._post(page, first.body, key, frame, after)
        return page

    async def _post(
        self,
        page: Page,
        body: Mapping[str, Any],
        key: str | None,
        frame: str | None,
        after: Witness | None = None,
    ) -> None:
        self._watchers.append(page)
        given = {"Idempotency-Key": key, "chatkit-frame-instance-id": frame, USER_HEADER: self.user}
        if after is not None:
            given["Last-Event-ID"] = after.event_id
        headers = {name: value for name, value in given.items() if value is not None}
        await page.post(self.rig.bridge.port, body, headers)

    def say_to(self, server: Server, text: str, *, key: str | None = None, after: Witness | None = None) -> Call:
        """Send a message by gRPC to a server."""
        chat = chat_service_pb2_grpc.ChatServiceStub(server.channel)
        method: Any = chat.AddUserMessage if self.thread_id else chat.CreateThread
        request: Any = chat_service_pb2.CreateThreadRequest()
        if self.thread_id:
            request = chat_service_pb2.AddUserMessageRequest(thread_id=self.thread_id)
        request.input.content.add().input_text.text = text
        # As the page sends it: the same request by either way.
        request.input.inference_options.SetInParent()
        if key is not None:
            request.request_id = key
        metadata = [*self._metadata, *([(LAST_EVENT_ID_KEY, after.event_id)] if after else [])]
        call = method(request, metadata=metadata, timeout=_STREAM_SECONDS)
        return self._watch(f"call to {server.program.name}", call, after)

    def resume(self, server: Server, run_id: str, after: Witness | None = None) -> Call:
        """Watch a run from a server: all of it, or what comes after what somebody has."""
        sequence = after.last_sequence or 0 if after else 0
        request = run_service_pb2.ResumeRunRequest(run_id=run_id, after_sequence=sequence)
        stub = run_service_pb2_grpc.RunServiceStub(server.channel)
        call = stub.ResumeRun(request, metadata=self._metadata, timeout=_STREAM_SECONDS)
        return self._watch(f"resumer at {server.program.name}", call, after)

    async def cancel(self, server: Server, run_id: str) -> float:
        """Stop a run by a server. When that was asked for. Raises ViolationError."""
        moment = time.monotonic()
        request = run_service_pb2.CancelRunRequest(run_id=run_id)
        stub = run_service_pb2_grpc.RunServiceStub(server.channel)
        try:
            await stub.CancelRun(request, metadata=self._metadata, timeout=_UNARY_SECONDS)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            raise ViolationError(f"CancelRun failed: {failure.code} {failure.message}") from None
        return moment

    def forgive(self, run_id: str, since: float, until: float = float("inf")) -> None:
        """The server that made a run went away at a moment: what it said just before may be missing."""
        if self.rig.forgives:
            self.forgiven.setdefault(run_id, []).append((since - self.rig.forgives, until))

    def forgive_runs_of(self, pid: int, since: float, until: float = float("inf")) -> None:
        """A server went away: the same for all runs that it made."""
        for run_id in {witness.run_id for witness in self.witnesses if witness.pid == pid}:
            self.forgive(run_id, since, until)

    async def leave(self, witness: Witness) -> None:
        """Let a watcher go."""
        for watcher in self._watchers:
            if watcher.witness is witness:
                await watcher.close()

    async def all_have_ended(self, seconds: float) -> None:
        """Wait until all streams have ended that nobody has left. Raises ViolationError."""
        await asyncio.gather(*(witness.has_ended(seconds) for witness in self.witnesses))

    async def close(self) -> None:
        for watcher in self._watchers:
            await watcher.close()

    def _witness(self, kind: str, after: Witness | None) -> Witness:
        witness = Witness(f"{kind} {len(self.witnesses)}", expects=after.next_token if after else 0)
        if after is not None:
            # So that its first event is told from one that was left out.
            witness.run_id, witness.last_sequence = after.run_id, after.last_sequence
        self.witnesses.append(witness)
        return witness

    def _watch(self, kind: str, call: Any, after: Witness | None) -> Call:
        watcher = Call(self._witness(kind, after), call)
        self._watchers.append(watcher)
        return watcher

    @property
    def _metadata(self) -> list[tuple[str, str]]:
        return [(USER_HEADER, self.user)]

    def _body(self, text: str) -> dict[str, Any]:
        content = {"content": [{"type": "input_text", "text": text}], "attachments": [], "inference_options": {}}
        if not self.thread_id:
            return {"type": "threads.create", "params": {"input": content}}
        return {"type": "threads.add_user_message", "params": {"thread_id": self.thread_id, "input": content}}


@asynccontextmanager
async def open_conversation(rig: Rig) -> AsyncIterator[Conversation]:
    """A new user's conversation, whose watchers have all left in the end."""
    conversation = Conversation(rig)
    try:
        yield conversation
    finally:
        await conversation.close()
