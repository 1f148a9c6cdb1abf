"""The one event that comes a thousand times an answer: a short cut past the general codec, for nothing but its speed.

What it writes and reads is what `codec.encode` and `codec.decode` do; a test holds them to it.
"""

from __future__ import annotations

from json.encoder import encode_basestring as quote

from chatkit_grpc import codec
from chatkit_grpc.v1.event_pb2 import ThreadStreamEvent


def encode_event(event: ThreadStreamEvent) -> str:
    """Any event as ChatKit's JSON, a text delta without the general writer's cost."""
    updated = event.thread_item_updated
    update = updated.update
    if update.HasField("assistant_message_content_part_text_delta"):
        part = update.assistant_message_content_part_text_delta
        return (
            f'{{"type":"thread.item.updated","item_id":{quote(updated.item_id)},'
            '"update":{"type":"assistant_message.content_part.text_delta",'
            f'"content_index":{part.content_index},"delta":{quote(part.delta)}}}}}'
        )
    return codec.encode(event)


def write_text_delta(event: ThreadStreamEvent, item_id: str, content_index: int, delta: str) -> None:
    """Make an empty event a text delta. Raises UnicodeEncodeError for a lone surrogate."""
    updated = event.thread_item_updated
    updated.item_id = item_id
    part = updated.update.assistant_message_content_part_text_delta
    part.content_index = content_index
    part.delta = delta
