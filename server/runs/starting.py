"""Starting a run: at most one at a time on a thread, and one for a request however often it comes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from chatkit_grpc.errors import ConflictError, ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from google.protobuf.message import Message

from server import sdk
from server.context import RequestContext
from server.ids import new_id
from server.lease import Lease
from server.limits.at_once import AtOnce
from server.limits.overload import Overload
from server.limits.refusals import out_of_tokens, overloaded, too_many_runs_at_once, too_many_runs_started
from server.limits.settings import LimitSettings
from server.runs.run import Run
from server.runs.runs import Runs, going_down
from server.runs.store import Attempt, NewRun, Obstacle, RunKey, ThreadKey
from server.settings import ConflictPolicy
from server.store import RecordNotFoundError

_NOTHING_IN_THE_WAY_SECONDS = 0.05
"""How long to wait where a start failed and nothing is in its way any more: others may be about to take it, too."""
_WAITING_FOR_EACH_RUN = 10
"""How many starts of a user may wait here for each run that he may have at once."""
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be started.

    thread_id: the thread. is_new: whether the run makes it.
    takes_locked: whether it may go on where the thread takes no new input: what the assistant itself asked for.
    needs_watcher: whether it is stopped where nobody ever watches it.
    request: by which a repeated one is known. request_id: the caller's.
    """

    thread_id: str
    request: Message
    request_id: str | None
    is_new: bool = False
    takes_locked: bool = False
    needs_watcher: bool = True


class Starting:
    """Takes leases of threads for runs."""

    def __init__(self, runs: Runs, policy: ConflictPolicy, limits: LimitSettings, overload: Overload) -> None:
        self._runs = runs
        self._limits = limits
        self._overload = overload
        # Those that wait for a thread's turn are kept in memory.
        self._waiting = AtOnce(limits.max_user_runs * _WAITING_FOR_EACH_RUN, partial(too_many_runs_at_once, limits))
        self._store = runs.run_store
        self._policy = policy
        self._turns: WeakValueDictionary[ThreadKey, asyncio.Lock] = WeakValueDictionary()

    async def start(self, start: Start, context: RequestContext, events: Callable[[], sdk.EventStream]) -> Run | RunKey:
        """Start a run, or find the one that was started with the same request_id. The caller watches it.

        Raises RecordNotFoundError without the thread, ConflictError where it can't have a run now, ValidationError for
        a request_id that was used for another request, LimitError where the user has had enough, UnavailableError while
        the server goes down or has too much to do.
        """
        if self._runs.is_draining:
            raise going_down()
        starting = self._runs.own(self._start(start, context, events), "a run's start")
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The caller has left. What he said is not lost: the run begins all the same, with its grace.
            if start.needs_watcher:
                starting.add_done_callback(self._nobody_watches)
            raise

    async def is_repeated(self, start: Start, context: RequestContext) -> bool:
        """Whether a request with this request_id has started a run before."""
        if start.request_id is None:
            return False
        new_run = self._new_run(ThreadKey(context["user_id"], start.thread_id), start, context)
        return (await self._store.obstacle(new_run)).repeated_run_id is not None

    def _nobody_watches(self, starting: asyncio.Task[Run | RunKey]) -> None:
        if not starting.cancelled() and starting.exception() is None and isinstance(run := starting.result(), Run):
            self._runs.left(run)

    async def _start(
        self, start: Start, context: RequestContext, events: Callable[[], sdk.EventStream]
    ) -> Run | RunKey:
        thread = ThreadKey(context["user_id"], start.thread_id)
        new_run = self._new_run(thread, start, context)
        turn = self._turn(thread)
        is_over = self._overload.is_over(len(self._runs) + len(self._waiting))
        if new_run.request_id and (is_over or turn.locked()):
            # It may be there already: neither the thread's turn nor a server with room need be waited for.
            repeated = await self._repeated(new_run, await self._store.obstacle(new_run))
            if repeated is not None:
                return repeated
        if is_over:
            raise overloaded()
        with self._waiting.one_more(thread.user_id):
            async with turn:
                lease = await self._wait_for_lease(new_run, start)
        return self._runs.begin(lease, context, events()) if isinstance(lease, Lease) else lease

    async def _wait_for_lease(self, new_run: NewRun, start: Start) -> Lease | RunKey:
        """The lease, once the thread is free, or the run that the same request has started meanwhile."""
        is_counted = False
        while True:
            attempt = await self._take_lease(new_run, start, is_counted=is_counted)
            if attempt is not None and attempt.epoch is not None:
                return Lease(new_run.thread.user_id, new_run.thread.thread_id, new_run.run_id, attempt.epoch)
            obstacle = await self._store.obstacle(new_run)
            if repeated := await self._repeated(new_run, obstacle):
                return repeated
            if attempt is None or attempt.is_repeated:
                await _pause()  # others were faster, or the request_id counts no longer
                continue
            # Before anything is stopped for a run that may not be.
            self._check_allowance(attempt)
            is_counted = is_counted or attempt.is_counted
            await self._make_way(new_run, start, obstacle, attempt)

    def _new_run(self, thread: ThreadKey, start: Start, context: RequestContext) -> NewRun:
        return NewRun(
            thread=thread,
            run_id=new_id("run"),
            server_id=self._runs.membership.server_id,
            request_id=_checked(start.request_id),
            request_hash=_hash_of(start.request, context.request.metadata) if start.request_id else None,
        )

    def _check_allowance(self, attempt: Attempt) -> None:
        if not attempt.has_tokens:
            raise out_of_tokens(self._limits)
        if attempt.is_limited:
            raise too_many_runs_started(self._limits, attempt.retry_after)

    async def _take_lease(self, new_run: NewRun, start: Start, *, is_counted: bool) -> Attempt | None:
        if self._runs.is_draining:
            raise going_down()
        # The server may have been taken for dead, and have got another name, while the thread wasn't free.
        new_run = replace(new_run, server_id=self._runs.membership.server_id)
        return await self._store.start(
            new_run, self._limits, is_new=start.is_new, is_counted=is_counted, even_if_locked=start.takes_locked
        )

    async def _repeated(self, new_run: NewRun, obstacle: Obstacle) -> RunKey | None:
        """The run that the same request started before."""
        if obstacle.repeated_run_id is None or new_run.request_id is None:
            return None
        if obstacle.request_expired:
            await self._store.forget_expired_request(new_run.thread.user_id, new_run.request_id)
            return None
        if obstacle.request_hash != new_run.request_hash:
            raise ValidationError(
                "This request_id belongs to an earlier request that asked for something else; choose another.",
                reason=reasons.ERROR_REASON_REQUEST_ID_REUSED,
            )
        return RunKey(new_run.thread.user_id, obstacle.repeated_run_id)

    async def _make_way(self, new_run: NewRun, start: Start, obstacle: Obstacle, attempt: Attempt) -> None:
        """Wait until the thread is free, or raise why it won't be."""
        if start.is_new:
            await self._nothing_in_the_way(attempt)
            return
        if not obstacle.thread_exists:
            raise RecordNotFoundError.thread(start.thread_id)
        if obstacle.status != "active" and not start.takes_locked:
            _refuse_input(start.thread_id, obstacle)
        if obstacle.active_run_id is None:
            await self._nothing_in_the_way(attempt)
            return
        if self._policy == "reject":
            raise ConflictError(
                "Another answer is being made on this thread; stop it first, or wait for its end.",
                metadata={"run_id": obstacle.active_run_id, "thread_id": start.thread_id},
            )
        active = RunKey(new_run.thread.user_id, obstacle.active_run_id)
        if self._policy == "enqueue":
            await self._runs.unless_draining(self._runs.wait_for_end(active))
        else:
            await self._runs.unless_draining(self._runs.stop(active))

    async def _nothing_in_the_way(self, attempt: Attempt) -> None:
        """The thread would be free, so that it was the user's other runs, or something that has passed."""
        if not attempt.has_place:
            raise too_many_runs_at_once(self._limits)
        await _pause()

    def _turn(self, thread: ThreadKey) -> asyncio.Lock:
        """Those who want the same thread take turns, first come, first served."""
        return self._turns.setdefault(thread, asyncio.Lock())


async def _pause() -> None:
    await asyncio.sleep(_NOTHING_IN_THE_WAY_SECONDS * random.uniform(0.2, 1))  # noqa: S311 # those who collided part


def _refuse_input(thread_id: str, obstacle: Obstacle) -> NoReturn:
    is_locked = obstacle.status == "locked"
    reason = reasons.ERROR_REASON_THREAD_LOCKED if is_locked else reasons.ERROR_REASON_THREAD_CLOSED
    standard = "This thread is locked for now." if is_locked else "This thread is closed."
    raise ConflictError(obstacle.status_reason or standard, reason=reason, metadata={"thread_id": thread_id})


def _checked(request_id: str | None) -> str | None:
    if not request_id:
        return None
    if not _REQUEST_ID.fullmatch(request_id):
        raise ValidationError.at("$.params.request_id", "expected 1 to 128 printable ASCII characters without spaces")
    return request_id


def _hash_of(request: Message, metadata: Mapping[str, Any]) -> bytes:
    described = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.sha256(described + json.dumps(metadata, sort_keys=True).encode()).digest()
