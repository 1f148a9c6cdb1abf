"""Events of a run as they go over the wire: serialised once, whoever gets them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from chatkit_grpc.errors import ChatKitError
from chatkit_grpc.v1.run_pb2 import EventBatch, RunState

from server.runs.store import Piece


class Said(NamedTuple):
    """What a watcher gets: some events of a run, or how it ended and then no events."""

    run_id: str
    piece: Piece
    state: RunState.ValueType = RunState.RUN_STATE_UNSPECIFIED

    def batch(self) -> bytes:
        """It as a serialised EventBatch: the events are put behind the rest, which is as good as inside of it."""
        head = EventBatch(run_id=self.run_id, first_sequence=self.piece.first, state=self.state)
        return head.SerializeToString() + self.piece.events

    def response(self) -> bytes:
        """It as a serialised streaming response. Those of all calls are the same: field 1 is the batch."""
        batch = self.batch()
        return b"\x0a" + _varint(len(batch)) + batch


def nothing_new(run_id: str, after: int, state: RunState.ValueType = RunState.RUN_STATE_UNSPECIFIED) -> Said:
    """No events after an event: that is all for now, or with a state for good."""
    return Said(run_id, Piece(after + 1, after, b""), state)


def ending(run_id: str, sequence: int, state: RunState.ValueType, error: ChatKitError | None) -> Iterator[Said]:
    """The last that a watcher gets. A run that failed before it said anything has nothing but its status."""
    if error is None or (sequence and state == RunState.RUN_STATE_FAILED):
        yield nothing_new(run_id, sequence, state)
    if error is not None:
        raise error


def parts_after(piece: Piece, after: int, replayed_until: int = 0) -> Iterable[Piece]:
    """What a watcher gets of a piece who has the events up to `after`: no `client_effect` up to `replayed_until`.

    The events of each part follow each other.
    """
    if not piece.events:
        return ()  # it stands for what was never logged
    if piece.first > after and piece.first > replayed_until:
        return (piece,)
    return _chosen(piece, after, replayed_until)


def _chosen(piece: Piece, after: int, replayed_until: int) -> Iterator[Piece]:
    kept: list[bytes] = []
    first = piece.first
    for number, event in enumerate(EventBatch.FromString(piece.events).events, piece.first):
        is_effect = number <= replayed_until and event.HasField("client_effect")
        if number <= after or is_effect:
            if kept:
                yield Piece(first, number - 1, b"".join(kept))
                kept = []
            first = number + 1
        else:
            kept.append(EventBatch(events=[event]).SerializeToString())
    if kept:
        yield Piece(first, piece.last, b"".join(kept))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
