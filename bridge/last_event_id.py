"""Last-Event-ID: the event up to which a page has a run's answer, so that it is told only what came after."""

from __future__ import annotations

import re
from dataclasses import dataclass

from chatkit_grpc.services import LAST_EVENT_ID_KEY
from chatkit_grpc.v1.run_service_pb2 import ResumeRunRequest
from google.protobuf.message import Message
from starlette.datastructures import Headers

_EVENT_ID = re.compile(r"(run_[0-9A-Za-z_-]{1,128}):([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class LastEventId:
    """The run and the number of an event in it, as the `id` of its frame says them."""

    run_id: str
    sequence: int

    @classmethod
    def of(cls, headers: Headers) -> LastEventId | None:
        """None where there is none, or one of another stream than ours."""
        found = _EVENT_ID.fullmatch(headers.get("last-event-id", ""))
        return cls(found[1], int(found[2])) if found else None

    @property
    def metadata(self) -> tuple[str, str]:
        """What the server is told; it counts where the request attaches to that run."""
        return LAST_EVENT_ID_KEY, f"{self.run_id}:{self.sequence}"

    def apply(self, parameters: Message) -> None:
        """Let a call that resumes this very run, and doesn't say after which event, go on after this one."""
        if isinstance(parameters, ResumeRunRequest) and parameters.run_id == self.run_id:
            parameters.after_sequence = parameters.after_sequence or self.sequence
