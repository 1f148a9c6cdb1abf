"""What the processes hold while nothing goes on: tasks, objects and connections, before and after."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from tests.faults.conversation import open_conversation
from tests.faults.rig import Rig, Server
from tests.faults.violation import ViolationError

SETTLE_SECONDS = 80.0
"""A peer that froze is noticed after 13 s, on a busy machine later; what leaks is still there then."""
_ANSWER_SECONDS = 10.0
_CONNECTIONS = 14
"""DATABASE_POOL_SIZE, and four for heartbeat, log and NOTIFY."""
_CLIENTS = 3
"""Our channel, and what the bridge may have."""
_OWN_TASKS = ("AioServer.", "_serve", "_schedule_rpc_coro", "_handle_exceptions")
"""gRPC's own, which come and go with its connections."""


@dataclass(frozen=True, slots=True)
class Census:
    """What was counted, by what it is. Sample: {"server-a: task Run._make": 1}.

    held: who keeps the runs that should be gone.
    """

    counts: Mapping[str, int]
    held: Sequence[str] = ()

    def growth_since(self, before: Census) -> list[str]:
        """What there is more of than there was."""
        return [
            f"{what}: {count}, was {before.counts.get(what, 0)}"
            for what, count in self.counts.items()
            if count > before.counts.get(what, 0)
        ]


async def take(rig: Rig) -> Census:
    """Count. Whatever runs is counted too: let there be nothing."""
    counts: dict[str, int] = {}
    held: list[str] = []
    for server in rig.servers:
        counts |= await _memory_of(rig, server, held)
        counts |= _connections_of(rig, server)
    counts["bridge: connections of pages"] = _connections(rig.bridge.pid, rig.bridge.port)
    return Census(counts, held)


async def take_warm(rig: Rig) -> Census:
    """What a system holds that has answered something."""
    await take(rig)
    return await take(rig)


async def settles(rig: Rig, before: Census) -> list[str]:
    """What there still is more of than before, after some time to settle."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (growth := (now := await take(rig)).growth_since(before)) and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    return growth + list(now.held if growth else ()) + await _busy_backends(rig)


async def _memory_of(rig: Rig, server: Server, held: list[str]) -> dict[str, int]:
    name = server.program.name
    async with open_conversation(rig) as talk:
        call = talk.say_to(server, "census")
        await call.witness.has_ended(_ANSWER_SECONDS)
    if not call.witness.notices:
        raise ViolationError(f"expected {name} to count: {call.witness}")
    counted = json.loads(call.witness.notices[0])
    held += [f"{name}: {line}" for line in counted["held"]]
    ours = {task: count for task, count in counted["tasks"].items() if not task.startswith(_OWN_TASKS)}
    tasks = {f"{name}: task {task}": count for task, count in ours.items()}
    objects = {thing: count for thing, count in counted["objects"].items() if not thing.endswith("PooledConnection")}
    return tasks | {f"{name}: object {thing}": count for thing, count in objects.items()}


def _connections_of(rig: Rig, server: Server) -> dict[str, int]:
    name, pid = server.program.name, server.program.pid
    to_database = _connections(pid, server.database_side.port)
    return {
        f"{name}: connections of clients beyond ours": max(0, _connections(pid, server.program.port) - _CLIENTS),
        # The pool keeps what it once needed.
        f"{name}: connections to PostgreSQL beyond its pool": max(0, to_database - _CONNECTIONS),
    }


def _connections(pid: int, port: int) -> int:
    found = psutil.Process(pid).net_connections("tcp")
    return sum(c.status != psutil.CONN_LISTEN and port in {*c.laddr[1:], *c.raddr[1:]} for c in found)


async def _busy_backends(rig: Rig) -> list[str]:
    """Connections of PostgreSQL that do anything, or hold anything, at rest."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while busy := {state: n for state, n in (await rig.ledger.backends()).items() if state not in {"idle", "active"}}:
        if time.monotonic() > deadline:
            return [f"PostgreSQL: connections that are {state}: {count}" for state, count in busy.items()]
        await asyncio.sleep(0.2)
    return []
