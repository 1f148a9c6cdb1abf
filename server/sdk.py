"""Everything that touches the insides of the ChatKit SDK, and the check at start that they are still what we know."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar, cast

import chatkit.server
from chatkit.errors import CustomStreamError
from chatkit.server import ChatKitServer
from chatkit.types import (
    AssistantMessageContentPartTextDelta,
    ErrorEvent,
    HiddenContextItem,
    InferenceOptions,
    SDKHiddenContextItem,
    StreamingReq,
    Thread,
    ThreadAddClientToolOutputParams,
    ThreadAddStructuredInputParams,
    ThreadAddUserMessageParams,
    ThreadCreateParams,
    ThreadCustomActionParams,
    ThreadItem,
    ThreadItemDoneEvent,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadRetryAfterItemParams,
    ThreadsAddClientToolOutputReq,
    ThreadsAddStructuredInputReq,
    ThreadsAddUserMessageReq,
    ThreadsCreateReq,
    ThreadsCustomActionReq,
    ThreadsRetryAfterItemReq,
    ThreadsSyncCustomActionReq,
    UserMessageItem,
)
from chatkit.types import Page as SDKPage
from chatkit.types import ThreadStreamEvent as SDKEvent
from chatkit.version import __version__ as SDK_VERSION  # noqa: N812 # it is a constant
from chatkit_grpc import codec
from chatkit_grpc.errors import AgentError, FieldViolation, ValidationError
from chatkit_grpc.text_delta import write_text_delta
from chatkit_grpc.v1 import chat_service_pb2 as chat
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.error_reason_pb2 import ErrorReason
from chatkit_grpc.v1.event_pb2 import ThreadStreamEvent
from google.protobuf.message import Message
from pydantic import BaseModel, PrivateAttr
from pydantic import ValidationError as PydanticError

from server.context import RequestContext
from server.text_repair import whole

KNOWN_VERSIONS = frozenset({"1.6.5"})
"""The SDK versions that the tests have been run with."""

_EVENTS_AT_A_STRETCH = 64
"""How many events an assistant may say before others get their turn."""

_USED_METHODS: Mapping[str, tuple[str, ...]] = {
    "_process_new_thread_item_respond": ("self", "thread", "item", "context"),
    "_process_streaming_impl": ("self", "request", "context"),
    "_build_user_message_item": ("self", "input", "thread", "context"),
    "_process_events": ("self", "thread", "context", "stream"),
    "_process_sync_custom_action": ("self", "request", "context"),
    "handle_stream_cancelled": ("self", "thread", "pending_items", "context"),
}

_REQUEST_TYPES: Mapping[type[Message], tuple[type[StreamingReq], type[BaseModel]]] = {
    chat.CreateThreadRequest: (ThreadsCreateReq, ThreadCreateParams),
    chat.AddUserMessageRequest: (ThreadsAddUserMessageReq, ThreadAddUserMessageParams),
    chat.AddClientToolOutputRequest: (ThreadsAddClientToolOutputReq, ThreadAddClientToolOutputParams),
    chat.AddStructuredInputRequest: (ThreadsAddStructuredInputReq, ThreadAddStructuredInputParams),
    chat.RetryAfterItemRequest: (ThreadsRetryAfterItemReq, ThreadRetryAfterItemParams),
    chat.RunActionRequest: (ThreadsCustomActionReq, ThreadCustomActionParams),
}

EventStream = AsyncGenerator[SDKEvent, None]
"""What a core says, event by event."""

M = TypeVar("M", bound=Message)
B = TypeVar("B", bound=BaseModel)
log = logging.getLogger(__name__)


class SDKError(Exception):
    """The installed ChatKit SDK isn't one that this server can work with."""


def check_version() -> None:
    """Refuse an SDK whose insides have changed; warn of one that merely hasn't been tried. Raises SDKError."""
    for name, parameters in _USED_METHODS.items():
        method = getattr(ChatKitServer, name, None)
        if method is None or tuple(inspect.signature(method).parameters) != parameters:
            raise SDKError(
                f"openai-chatkit {SDK_VERSION} has no ChatKitServer.{name}({', '.join(parameters)}); "
                f"install one of: {', '.join(sorted(KNOWN_VERSIONS))}"
            )
    if SDK_VERSION not in KNOWN_VERSIONS:
        log.warning("openai-chatkit %s has not been tried; known: %s", SDK_VERSION, ", ".join(sorted(KNOWN_VERSIONS)))


def let_others_run(server: ChatKitServer[Any]) -> None:
    """Make a core pause now and then while the assistant talks without a break, as one does that needn't wait for it.

    The pause is put between the core and the assistant, so that a cancel which lands in it is felt by the core, which
    then stores what was said.
    """
    process_events = server._process_events  # noqa: SLF001 # what this file is for

    def with_pauses(
        thread: ThreadMetadata, context: Any, stream: Callable[[], AsyncIterator[SDKEvent]]
    ) -> AsyncIterator[SDKEvent]:
        return process_events(thread, context, lambda: _with_pauses(stream()))

    server._process_events = with_pauses  # type: ignore[method-assign]  # noqa: SLF001 # of this one object


async def _with_pauses(events: AsyncIterator[SDKEvent]) -> AsyncIterator[SDKEvent]:
    count = 0
    try:
        async for event in events:
            yield event
            count += 1
            if count % _EVENTS_AT_A_STRETCH == 0:
                await asyncio.sleep(0)
    except CustomStreamError as error:
        # As the core would say it, but with its reason.
        yield _failure_event(error)
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


class FailureEvent(ErrorEvent):
    """An `error` event with the reason of what failed, which the SDK's own has no place for."""

    _reason: ErrorReason.ValueType = PrivateAttr(default=reasons.ERROR_REASON_UNSPECIFIED)


def _failure_event(error: CustomStreamError) -> FailureEvent:
    event = FailureEvent(code="custom", message=error.message, allow_retry=error.allow_retry)
    event._reason = getattr(error, "reason", reasons.ERROR_REASON_AGENT_FAILED)  # noqa: SLF001 # our own
    return event


def open_stream(server: ChatKitServer[Any], request: Message, context: RequestContext) -> EventStream:
    """The core's events for a streaming request, as objects: `process` would serialise each only for us to parse it.

    Raises ValidationError for a request that the SDK's own types refuse.
    """
    request_type, params_type = _REQUEST_TYPES[type(request)]
    params = parse(params_type, request)
    # Constructed and not validated: the parameters just were.
    sdk_request = request_type.model_construct(params=params, metadata=dict(context.request.metadata))
    return server._process_streaming_impl(sdk_request, context)  # noqa: SLF001 # what this file is for


def check_options(server: ChatKitServer[Any], request: Message) -> None:
    """Let a core that has a method `check_options` refuse what the user has picked for a message.

    Raises what that raises, before anything is started for the message.
    """
    check = getattr(server, "check_options", None)
    if check is not None and isinstance(request, (chat.CreateThreadRequest, chat.AddUserMessageRequest)):
        check(parse(InferenceOptions, request.input.inference_options))


async def run_sync_action(
    server: ChatKitServer[Any], request: chat.RunSyncActionRequest, context: RequestContext
) -> chat.RunSyncActionResponse:
    """Let the core run an action that answers with an item. Raises ValidationError, and what the assistant raises."""
    params = parse(ThreadCustomActionParams, request)
    sdk_request = ThreadsSyncCustomActionReq(params=params, metadata=dict(context.request.metadata))
    answer = await server._process_sync_custom_action(sdk_request, context)  # noqa: SLF001 # what this file is for
    return codec.decode(chat.RunSyncActionResponse, json.loads(answer))


def parse(model: type[B], message: Message) -> B:
    """A message as the SDK's type for it. Raises ValidationError with the path of what the SDK refuses."""
    try:
        return model.model_validate_json(codec.encode(message))
    except PydanticError as error:
        violations = [
            FieldViolation("$" + "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in e["loc"]), e["msg"])
            for e in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        raise ValidationError("; ".join(map(str, violations)), violations=violations) from None


def write_event(event: SDKEvent, message: ThreadStreamEvent) -> int:
    """Make an empty message the event. Returns about how many bytes it takes. Raises AgentError.

    The hot path: a text delta is written field by field.
    """
    if type(event) is not ThreadItemUpdatedEvent or type(event.update) is not AssistantMessageContentPartTextDelta:
        message.CopyFrom(to_message(event, ThreadStreamEvent))
        if isinstance(event, FailureEvent):
            message.error.reason = event._reason  # noqa: SLF001 # our own
        return message.ByteSize()
    part = event.update
    try:
        write_text_delta(message, event.item_id, part.content_index, part.delta)
    except UnicodeEncodeError:
        # A model that splits an emoji sends half of a surrogate pair. The answer goes on without it.
        write_text_delta(message, event.item_id, part.content_index, whole(part.delta))
    return len(part.delta)


def to_message(value: BaseModel, message_type: type[M]) -> M:
    """An object of the SDK as a message, by way of the very JSON that the SDK would send. Raises AgentError."""
    members = value.model_dump(mode="json", by_alias=True, exclude_none=True, context={"exclude_metadata": True})
    try:
        return codec.decode(message_type, members)
    except ValidationError:
        pass
    try:
        return codec.decode(message_type, whole(members))
    except ValidationError:
        # Its words would quote what was said.
        raise AgentError("The assistant said something that can't be sent.") from None


async def answer_item(
    server: ChatKitServer[Any], thread_id: str, item: ThreadItem, context: RequestContext
) -> EventStream:
    """Add an item to a thread and let the core answer it, as it answers what a user sends."""
    thread = await server.store.load_thread(thread_id, context)
    if isinstance(item, UserMessageItem):
        events = server._process_new_thread_item_respond(thread, item, context)  # noqa: SLF001 # what this file is for
    else:
        await server.store.add_thread_item(thread_id, item, context)
        if not isinstance(item, (HiddenContextItem, SDKHiddenContextItem)):
            yield ThreadItemDoneEvent(item=item)
        events = server._process_events(thread, context, lambda: server.respond(thread, None, context))  # noqa: SLF001 # as above
    async with aclosing(cast("EventStream", events)):
        async for event in events:
            yield event


def thread_response(thread: ThreadMetadata, items: SDKPage[Any] | None = None) -> Thread:
    """A thread as clients see it: the assistant's own metadata stays here."""
    return Thread(
        id=thread.id,
        title=thread.title,
        created_at=thread.created_at,
        status=thread.status,
        allowed_image_domains=thread.allowed_image_domains,
        items=items or SDKPage(),
    )


def takes_dictation(server: ChatKitServer[Any]) -> bool:
    """Whether a core turns speech into text: by its own word, `takes_dictation`, or where it has a method for it."""
    return bool(getattr(server, "takes_dictation", type(server).transcribe is not ChatKitServer.transcribe))


def is_refusal(error: BaseException) -> bool:
    """Whether an error is the core's own word that a request doesn't fit the thread, and not somebody's bug.

    The core says so with a bare ValueError, raised in its own code before it calls the assistant.
    """
    if type(error) is not ValueError or error.__traceback__ is None:
        return False
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    return innermost.tb_frame.f_globals.get("__name__") == chatkit.server.__name__
