"""Runs and their log in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import asyncpg
from chatkit_grpc.errors import ChatKitError, DatabaseError, NotFoundError, from_status
from chatkit_grpc.services import AUTO_REQUEST_ID
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1 import run_pb2 as pb
from chatkit_grpc.v1.run_pb2 import RunState
from google.rpc.status_pb2 import Status

from server.context import TokenUsage
from server.database import Database
from server.lease import Lease
from server.limits.settings import LimitSettings
from server.runs import statements
from server.store import RecordNotFoundError

REQUEST_ID_SECONDS = 24 * 3600.0
"""How long a request_id counts."""
AUTO_REQUEST_ID_SECONDS = 60.0
"""How long one counts that the bridge made: ChatKit's page repeats a request for about half a minute."""

_UNIQUE_VIOLATION = "23505"


class Piece(NamedTuple):
    """Some events of a run, as a serialised EventBatch with nothing but events.

    Without any it stands for numbers that are taken by what was never logged.
    """

    first: int
    last: int
    events: bytes


class RunKey(NamedTuple):
    """A run, by what its row's key is."""

    user_id: str
    run_id: str


class ThreadKey(NamedTuple):
    """A thread, by what its row's key is."""

    user_id: str
    thread_id: str


@dataclass(frozen=True, slots=True)
class NewRun:
    """What a run is started with.

    request_hash: by which a repeated request is known, where it has a request_id.
    """

    thread: ThreadKey
    run_id: str
    server_id: str
    request_id: str | None = None
    request_hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a run didn't start.

    active_run_id: the run that holds the thread's lease.
    repeated_run_id: the run that was started with this request_id, and request_hash what it was asked for.
    """

    thread_exists: bool
    status: str | None
    status_reason: str | None
    active_run_id: str | None
    repeated_run_id: str | None
    request_hash: bytes | None
    request_expired: bool


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some of what a run said, and how far it is.

    end_sequence: the number of its last event, once it has ended.
    has_log: whether its events are still kept.
    error: what it failed with.
    """

    thread_id: str
    state: RunState.ValueType
    end_sequence: int | None
    has_log: bool
    creates_thread: bool
    error: ChatKitError | None
    pieces: list[Piece]

    @property
    def has_news(self) -> bool:
        """Whether it tells anything."""
        return bool(self.pieces) or self.end_sequence is not None

    @property
    def is_full(self) -> bool:
        """Whether there may be more where this came from."""
        return len(self.pieces) >= 200 or sum(len(piece.events) for piece in self.pieces) >= 256 * 1024


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened on a thread: "run_started", "run_ended", or "changed" with events."""

    position: int
    kind: str
    run_id: str | None
    state: RunState.ValueType
    events: bytes


@dataclass(frozen=True, slots=True)
class ThreadPage:
    """Some of what happened on a thread. end_position: of the last thing that did."""

    end_position: int
    changes: list[Change]


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run and how far it is."""

    thread_id: str
    run_id: str
    state: RunState.ValueType

    @property
    def is_active(self) -> bool:
        """Whether it holds its thread's lease."""
        return self.state == RunState.RUN_STATE_RUNNING


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of starting a run.

    epoch: the run's; None where it wasn't started.
    is_repeated: whether its request_id is taken.
    is_counted: whether it has now been counted as one of the user's.
    is_limited: whether it wasn't, since the user has started too many; retry_after: in how many seconds he may again.
    has_place: whether the user has fewer runs at once than he may. has_tokens: whether he has some left today.
    """

    epoch: int | None
    is_repeated: bool
    is_counted: bool
    is_limited: bool
    retry_after: float
    has_place: bool
    has_tokens: bool


class RunStore:
    """The rows of runs, of what they said, and of what happened on threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(
        self, run: NewRun, limits: LimitSettings, *, is_new: bool, is_counted: bool, even_if_locked: bool
    ) -> Attempt | None:
        """Take a thread's lease, or make the thread, unless something is in the way, see `obstacle`.

        is_counted: whether the run has been counted before.
        None where somebody else took the request_id, or the place among the user's runs, at the same time.
        """
        is_auto = run.request_id is not None and run.request_id.startswith(AUTO_REQUEST_ID)
        values = (
            *(*run.thread, run.run_id, run.server_id, run.request_id, run.request_hash),
            AUTO_REQUEST_ID_SECONDS if is_auto else REQUEST_ID_SECONDS,
            0.0 if is_counted else limits.seconds_per_run,
            limits.rate_limit_window,
            limits.max_user_runs,
            limits.tokens_per_day,
            is_new,
            even_if_locked,
        )
        try:
            (row,) = await self._database.fetch(statements.START, *values)
        except DatabaseError as error:
            if error.metadata.get("sqlstate") != _UNIQUE_VIOLATION:
                raise
            return None
        return Attempt(**row)

    async def obstacle(self, run: NewRun) -> Obstacle:
        """What was in a run's way."""
        (row,) = await self._database.fetch(statements.OBSTACLE, *run.thread, run.request_id)
        return Obstacle(
            thread_exists=row["thread_exists"],
            status=row["status"],
            status_reason=row["status_reason"],
            active_run_id=row["active_run_id"],
            repeated_run_id=row["run_id"],
            request_hash=row["request_hash"],
            request_expired=bool(row["request_expired"]),
        )

    async def forget_expired_request(self, user_id: str, request_id: str) -> None:
        """Make room for a request_id that no longer counts."""
        await self._database.fetch(statements.FORGET_EXPIRED_REQUEST, user_id, request_id)

    async def acknowledge(self, run: RunKey) -> bool:
        """Let the run's request_id count no longer if it was made by the bridge. Whether there is such a run."""
        return bool(await self._database.fetch(statements.FORGET_AUTO_REQUEST, *run, AUTO_REQUEST_ID))

    async def end(
        self,
        lease: Lease,
        state: RunState.ValueType,
        last_sequence: int,
        error: ChatKitError | None,
        pieces: Sequence[Piece],
        tokens: int = 0,
        usage: TokenUsage | None = None,
    ) -> bool:
        """Give a lease back, with the rest of the log, and count the tokens. Whether the run held it."""
        values = end_values(
            *(lease, state, last_sequence, error, pieces), has_items=bool(lease.stored), tokens=tokens, usage=usage
        )
        return bool(await self._database.fetch(*values))

    async def append(self, server_id: str, pieces: Sequence[tuple[Lease, Piece]]) -> set[str]:
        """Write to the logs of a server's runs. The ids of those that hold their leases: the others wrote nothing."""
        row = await self._database.fetchrow(
            statements.APPEND_LOG,
            server_id,
            [lease.user_id for lease, _ in pieces],
            [lease.run_id for lease, _ in pieces],
            [piece.first for _, piece in pieces],
            [piece.last for _, piece in pieces],
            [piece.events for _, piece in pieces],
        )
        return set(row["run_ids"]) if row is not None else set()

    async def read(self, wanted: Mapping[RunKey, int]) -> dict[RunKey, LogPage]:
        """What runs said after an event each, a page of it. A run that isn't there has no page."""
        rows = await self._database.fetch(
            statements.READ_LOG,
            [key.user_id for key in wanted],
            [key.run_id for key in wanted],
            list(wanted.values()),
        )
        pages: dict[RunKey, LogPage] = {}
        for row in rows:
            key = RunKey(row["user_id"], row["run_id"])
            if key not in pages:
                pages[key] = _page_of(row)
            if row["events"] is not None:
                pages[key].pieces.append(piece_of(row))
        return pages

    async def read_whole(self, run: RunKey) -> list[Piece]:
        """All that a run has logged."""
        return [piece_of(row) for row in await self._database.fetch(statements.READ_WHOLE_LOG, *run)]

    async def last_logged(self, run: RunKey) -> int:
        """The number of the last event that a run has logged; 0 without one."""
        last: int = await self._database.fetchval(statements.LAST_LOGGED, *run)
        return last

    async def read_thread(self, wanted: Mapping[ThreadKey, int]) -> dict[ThreadKey, ThreadPage]:
        """What happened on threads after a position each, a page of it. A thread that isn't there has no page."""
        rows = await self._database.fetch(
            statements.READ_THREAD_EVENTS,
            [key.user_id for key in wanted],
            [key.thread_id for key in wanted],
            list(wanted.values()),
        )
        pages: dict[ThreadKey, ThreadPage] = {}
        for row in rows:
            key = ThreadKey(row["user_id"], row["session_id"])
            page = pages.setdefault(key, ThreadPage(row["log_position"], []))
            if row["position"] is not None:
                page.changes.append(_change_of(row))
        return pages

    async def thread_end(self, thread: ThreadKey) -> tuple[int, str | None] | None:
        """The position of the last thing that happened on a thread, and its active run. None without a thread."""
        row = await self._database.fetchrow(statements.FIND_THREAD_END, *thread)
        return None if row is None else (row["log_position"], row["active_run_id"])

    async def find(self, run: RunKey) -> FoundRun:
        """A run. Raises NotFoundError."""
        row = await self._database.fetchrow(statements.FIND_RUN, *run)
        if row is None:
            raise run_not_found(run.run_id)
        return FoundRun(row["session_id"], row["run_id"], _state_of(row["state"]))

    async def describe(self, run: RunKey) -> pb.Run:
        """A run as its user is told of it. Raises NotFoundError."""
        row = await self._database.fetchrow(statements.DESCRIBE_RUN, *run)
        if row is None:
            raise run_not_found(run.run_id)
        return _run_of(row)

    async def find_active(self, thread: ThreadKey) -> FoundRun | None:
        """The run that is active on a thread. Raises NotFoundError without such a thread."""
        row = await self._database.fetchrow(statements.FIND_ACTIVE_RUN, *thread)
        if row is None:
            raise RecordNotFoundError.thread(thread.thread_id)
        if row["run_id"] is None:
            return None
        return FoundRun(row["session_id"], row["run_id"], _state_of(row["state"]))

    async def request_cancel(self, run: RunKey) -> bool:
        """Ask the run's server to stop it. Whether it is active."""
        return bool(await self._database.fetch(statements.REQUEST_CANCEL, *run))

    async def glance(self, thread: ThreadKey) -> str | None:
        """Say that somebody looked at what the thread's active run has said. That run's id, if there is one."""
        run_id: str | None = await self._database.fetchval(statements.GLANCE, *thread)
        return run_id

    async def promise_to_watch(self, runs: Sequence[RunKey], seconds: float) -> None:
        """Say that runs will be watched from here for a while."""
        users, ids = [run.user_id for run in runs], [run.run_id for run in runs]
        await self._database.fetch(statements.PROMISE_TO_WATCH, users, ids, seconds)

    async def unwatched_for(self, run: RunKey) -> float | None:
        """Seconds since a run was last watched from elsewhere, negative while it is; None if it never was."""
        seconds: float | None = await self._database.fetchval(statements.UNWATCHED_FOR, *run)
        return seconds


def run_not_found(run_id: str) -> NotFoundError:
    """There is no such run, or not for this user."""
    metadata = {"run_id": run_id}
    return NotFoundError("There is no such run.", reason=reasons.ERROR_REASON_RUN_NOT_FOUND, metadata=metadata)


def end_values(
    lease: Lease,
    state: RunState.ValueType,
    last_sequence: int,
    error: ChatKitError | None,
    pieces: Sequence[Piece],
    *,
    has_items: bool = False,
    tokens: int = 0,
    usage: TokenUsage | None = None,
) -> tuple[str, *tuple[object, ...]]:
    """The statement that ends a run, and its values.

    has_items: whether it is known to have left some on its thread. tokens: how many of models it took, and usage: of
    which.
    """
    return (
        statements.END_RUN,
        lease.user_id,
        lease.thread_id,
        lease.run_id,
        _STATE_NAMES[state],
        last_sequence,
        None if error is None else error.to_status().SerializeToString(),
        [piece.first for piece in pieces],
        [piece.last for piece in pieces],
        [piece.events for piece in pieces],
        has_items,
        tokens,
        None if usage is None or not usage.requests else json.dumps(asdict(usage)),
    )


_STATE_NAMES = {value: name.removeprefix("RUN_STATE_").lower() for name, value in RunState.items()}
_STATES = {name: value for value, name in _STATE_NAMES.items()}


def _state_of(name: str | None) -> RunState.ValueType:
    return _STATES.get(name or "", RunState.RUN_STATE_UNSPECIFIED)


def _page_of(row: asyncpg.Record) -> LogPage:
    return LogPage(
        thread_id=row["session_id"],
        state=_state_of(row["state"]),
        end_sequence=row["end_sequence"],
        has_log=row["has_log"],
        creates_thread=row["creates_thread"],
        error=None if row["error"] is None else from_status(Status.FromString(row["error"])),
        pieces=[],
    )


def piece_of(row: asyncpg.Record) -> Piece:
    """A row of the log."""
    return Piece(row["first_sequence"], row["last_sequence"], row["events"])


def _run_of(row: asyncpg.Record) -> pb.Run:
    described = pb.Run(id=row["run_id"], thread_id=row["session_id"], state=_state_of(row["state"]))
    described.created_at.FromDatetime(row["created_at"])
    if row["ended_at"] is not None:
        described.ended_at.FromDatetime(row["ended_at"])
        described.last_sequence = row["last_sequence"]
    if row["usage"] is not None:
        described.usage.CopyFrom(pb.TokenUsage(**json.loads(row["usage"])))
    return described


def _change_of(row: asyncpg.Record) -> Change:
    return Change(row["position"], row["kind"], row["run_id"], _state_of(row["state"]), row["events"] or b"")
