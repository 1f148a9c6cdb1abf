"""Batches of events as Server-Sent Events; the `id` of each is its run and its number there."""

from __future__ import annotations

from chatkit_grpc.errors import ChatKitError
from chatkit_grpc.text_delta import encode_event
from chatkit_grpc.v1.event_pb2 import ErrorEvent, ThreadStreamEvent
from chatkit_grpc.v1.run_pb2 import EventBatch

from bridge.headers import NOSNIFF

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    # no-transform: a proxy that compresses would also collect.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    **NOSNIFF,
}
HEARTBEAT = b": heartbeat\n\n"
"""A comment: ChatKit's page ignores the names of events, so that only a comment isn't taken for one."""
_NEWLINES = str.maketrans("\r\n", "  ")


def frames(batch: EventBatch) -> bytes:
    """The events of a batch, one frame each. Sample: "id: run_0192…:17", "data: {…}" and a blank line."""
    head = f"id: {batch.run_id}:"
    number = batch.first_sequence
    parts: list[str] = []
    for event in batch.events:
        text = encode_event(event)
        if "\n" in text or "\r" in text:
            # Outside of strings JSON may have any white space; inside of them a line end is always escaped.
            text = text.translate(_NEWLINES)
        parts.append(f"{head}{number}\ndata: {text}\n\n")
        number += 1
    return "".join(parts).encode()


def error_frame(error: ChatKitError) -> bytes:
    """A failure as ChatKit's page shows it: its message, with Retry where that may help."""
    # From 499 on (stopped, failed, out of reach) the same request may work the next time.
    event = ErrorEvent(code="custom", message=error.message, allow_retry=error.http_status >= 499)
    return f"data: {encode_event(ThreadStreamEvent(error=event))}\n\n".encode()
