"""What the server is told once a page has the head of its answer, behind the page's back."""

from __future__ import annotations

import asyncio
import logging

from chatkit_grpc.errors import ChatKitError
from chatkit_grpc.services import Metadata
from chatkit_grpc.v1.run_service_pb2 import AcknowledgeRunRequest

from bridge.backend import METHODS, Backend

_CLOSE_SECONDS = 1.0

log = logging.getLogger(__name__)


class Acknowledgements:
    """Makes the calls that nobody waits for, and sees to their end."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, run_id: str, metadata: Metadata) -> None:
        """Say that the id of the request which began a run no longer counts."""
        task = asyncio.create_task(self._acknowledge(run_id, metadata), name=f"acknowledge {run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Let those under way finish for a moment, then end them."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _acknowledge(self, run_id: str, metadata: Metadata) -> None:
        request = AcknowledgeRunRequest(run_id=run_id)
        try:
            await self._backend.call(METHODS[request.DESCRIPTOR.full_name].path, request, metadata)
        except ChatKitError as error:
            # The id then counts for its minute, in which the same words once more would get the same answer.
            log.warning("%s was not acknowledged: %s", run_id, error.code)

    def __len__(self) -> int:
        return len(self._tasks)
