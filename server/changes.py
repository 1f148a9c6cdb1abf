"""Events as the logs keep them, of runs and of what is changed on a thread outside of runs."""

from __future__ import annotations

from collections.abc import Iterable

from chatkit.types import ThreadStreamEvent as SDKEvent
from chatkit_grpc.v1.event_pb2 import ThreadItemRemovedEvent, ThreadStreamEvent
from chatkit_grpc.v1.run_pb2 import EventBatch

from server import sdk


def change_of(*events: ThreadStreamEvent) -> bytes:
    """Events as the logs keep them."""
    return EventBatch(events=events).SerializeToString()


def logged(events: Iterable[SDKEvent]) -> bytes:
    """Events of the SDK as the logs keep them. Raises AgentError."""
    return change_of(*(sdk.to_message(event, ThreadStreamEvent) for event in events))


def removal_of(item_ids: Iterable[str]) -> bytes:
    """The removal of items."""
    return change_of(
        *(ThreadStreamEvent(thread_item_removed=ThreadItemRemovedEvent(item_id=item_id)) for item_id in item_ids)
    )
