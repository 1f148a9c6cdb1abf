"""The right of a run to write to its thread, and the word for having lost it."""

from __future__ import annotations

from dataclasses import dataclass, field

from chatkit_grpc.errors import UnavailableError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server.context import RequestContext

_KEY = "_chatkit_grpc.lease"


@dataclass(frozen=True, slots=True)
class Lease:
    """What a run holds while it is the thread's active one.

    epoch: which of the thread's runs it is. Each write of the run names it, and finds no row once it has passed.
    stored: the ids of the items that were written under the lease, but for what only the model is told of its end.
    """

    user_id: str
    thread_id: str
    run_id: str
    epoch: int
    stored: set[str] = field(default_factory=set)

    def give_to(self, context: RequestContext) -> None:
        """Let what is written with a context be written under this lease."""
        context[_KEY] = self


class LeaseLostError(UnavailableError):
    """The thread was deleted, or the run's server was taken for dead and the run ended without it."""

    default_reason = reasons.ERROR_REASON_RUN_INTERRUPTED

    def __init__(self) -> None:
        super().__init__("The answer was interrupted.")


def lease_of(context: RequestContext, thread_id: str | None) -> Lease | None:
    """The lease under which a context writes to a thread: none outside of runs, and for another thread."""
    lease: Lease | None = context.get(_KEY)
    return lease if lease is not None and lease.thread_id == thread_id else None
