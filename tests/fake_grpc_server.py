"""A gRPC server on a real socket that answers call by call as a test's script says, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from chatkit_grpc.errors import DETAILS_KEY, ChatKitError
from chatkit_grpc.services import SERVICES
from chatkit_grpc.v1.event_pb2 import ThreadStreamEvent
from chatkit_grpc.v1.run_pb2 import RUN_STATE_UNSPECIFIED, EventBatch, RunState
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

Step = EventBatch | Message | grpc.StatusCode | ChatKitError | asyncio.Event
"""Send this batch or this answer; fail with this; wait for this."""

RUN = "run_1"


def batch(first: int, *texts: str, run_id: str = RUN, state: RunState.ValueType = RUN_STATE_UNSPECIFIED) -> EventBatch:
    """A batch of progress updates."""
    events = []
    for text in texts:
        event = ThreadStreamEvent()
        event.progress_update.text = text
        events.append(event)
    return EventBatch(run_id=run_id, first_sequence=first, events=events, state=state)


@dataclass(frozen=True, slots=True)
class Call:
    """What the server was asked."""

    rpc: str
    request: Any
    metadata: dict[str, str | bytes]


@dataclass
class FakeServer:
    """Answers the first call of an RPC by its first script, the second by the second, all others by the last.

    open_calls: how many are being answered now.
    """

    port: int = 0
    calls: list[Call] = field(default_factory=list)
    open_calls: int = 0
    health: health.aio.HealthServicer = field(default_factory=health.aio.HealthServicer)
    _scripts: dict[str, list[tuple[Step, ...]]] = field(default_factory=lambda: defaultdict(list))

    def script(self, rpc: str, *steps: Step) -> None:
        """Say what one more call of an RPC is answered."""
        self._scripts[rpc].append(steps)

    def requests(self, rpc: str) -> list[Any]:
        """What an RPC was asked, in order."""
        return [call.request for call in self.calls if call.rpc == rpc]

    @property
    def target(self) -> str:
        """Where it is, for a channel."""
        return f"127.0.0.1:{self.port}"

    async def set_serving(self, *, is_serving: bool) -> None:
        """Tell whoever watches its health."""
        status = health_pb2.HealthCheckResponse
        await self.health.set("", int(status.SERVING if is_serving else status.NOT_SERVING))

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        for name, service in SERVICES.items():
            handlers = {method.name: self._handler(method) for method in service.methods}
            self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, handlers)])
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        await self.set_serving(is_serving=True)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._server.stop(None)

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)

        async def stream(message: Any, context: Any) -> AsyncIterator[Message]:
            async for step in self._steps(method.name, message, context):
                yield response(batch=step)

        async def unary(message: Any, context: Any) -> Message:
            return await anext(self._steps(method.name, message, context), response())

        write: Callable[[Any], bytes] = response.SerializeToString
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, request.FromString, write)
        return grpc.unary_unary_rpc_method_handler(unary, request.FromString, write)

    async def _steps(self, rpc: str, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls.append(Call(rpc, request, dict(context.invocation_metadata() or ())))
        scripts = self._scripts[rpc]
        self.open_calls += 1
        try:
            for step in scripts.pop(0) if len(scripts) > 1 else (scripts or [()])[0]:
                await self._prepare(step, context)
                if isinstance(step, Message):
                    yield step
        finally:
            self.open_calls -= 1

    async def _prepare(self, step: Step, context: Any) -> None:
        if isinstance(step, asyncio.Event):
            await step.wait()
        elif isinstance(step, grpc.StatusCode):
            await context.abort(step, "as the script says")
        elif isinstance(step, ChatKitError):
            details = ((DETAILS_KEY, step.to_status().SerializeToString()),)
            await context.abort(step.grpc_status, step.message, trailing_metadata=details)
