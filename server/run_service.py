"""RunService: watching a run again, and stopping it, from any server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from chatkit_grpc.errors import NotFoundError, ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1 import run_service_pb2 as pb

from server.context import RequestContext
from server.runs.runs import Runs
from server.runs.store import FoundRun, RunKey, ThreadKey, run_not_found
from server.runs.watching import Watching


class RunService:
    """A user's own runs, after they were started."""

    def __init__(self, runs: Runs, watching: Watching) -> None:
        self._runs = runs
        self._store = runs.run_store
        self._watching = watching

    async def resume_run(self, request: pb.ResumeRunRequest, context: RequestContext) -> AsyncGenerator[bytes, None]:
        """What a run said after an event, and what it goes on to say."""
        _check_one_of(request)
        run_id = request.run_id
        if request.thread_id:
            found = await self._store.find_active(ThreadKey(context["user_id"], request.thread_id))
            if found is None:
                raise NotFoundError(
                    "No answer is being made on this thread.",
                    reason=reasons.ERROR_REASON_RUN_NOT_FOUND,
                    metadata={"thread_id": request.thread_id},
                )
            run_id = found.run_id
        watching = self._watching.watch(RunKey(context["user_id"], run_id), request.after_sequence)
        async with aclosing(watching):
            async for said in watching:
                yield said.response()

    async def get_run(self, request: pb.GetRunRequest, context: RequestContext) -> pb.GetRunResponse:
        """A run: how far it is, and what it took."""
        return pb.GetRunResponse(run=await self._store.describe(RunKey(context["user_id"], request.run_id)))

    async def cancel_run(self, request: pb.CancelRunRequest, context: RequestContext) -> pb.CancelRunResponse:
        """Stop a run, and wait until what it said is stored."""
        _check_one_of(request)
        found = await self._find(request, context)
        if found is None:
            return pb.CancelRunResponse()
        if found.is_active:
            key = RunKey(context["user_id"], found.run_id)
            await self._runs.stop(key)
            found = await self._store.find(key)
        return pb.CancelRunResponse(run_id=found.run_id, state=found.state)

    async def acknowledge_run(
        self, request: pb.AcknowledgeRunRequest, context: RequestContext
    ) -> pb.AcknowledgeRunResponse:
        """Let a request_id that was made by the bridge count no longer."""
        if not await self._store.acknowledge(RunKey(context["user_id"], request.run_id)):
            raise run_not_found(request.run_id)
        return pb.AcknowledgeRunResponse()

    async def _find(self, request: pb.CancelRunRequest, context: RequestContext) -> FoundRun | None:
        if request.thread_id:
            return await self._store.find_active(ThreadKey(context["user_id"], request.thread_id))
        return await self._store.find(RunKey(context["user_id"], request.run_id))


def _check_one_of(request: pb.ResumeRunRequest | pb.CancelRunRequest) -> None:
    if bool(request.run_id) == bool(request.thread_id):
        raise ValidationError.at("$.params", "expected either run_id or thread_id")
