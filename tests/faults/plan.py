"""What the long form tries, and how often: an attempt each, with the settings that its servers need."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.faults.bridge_faults import freeze as freeze_bridge
from tests.faults.bridge_faults import kill_and_come_back, kill_for_good
from tests.faults.cancel_faults import cancel, cancel_model, leave_model
from tests.faults.client_faults import CLIENTS, stall_much, stall_page_much
from tests.faults.database_faults import restart
from tests.faults.network_faults import (
    lose_bridge_side,
    lose_database_beyond_the_lease,
    lose_database_for_a_moment,
)
from tests.faults.retry_faults import (
    with_key,
    with_key_at_once,
    with_key_of_another_request,
    without_head,
    without_key,
)
from tests.faults.rig import Rig
from tests.faults.schedule import draw_schedule, run_schedule
from tests.faults.server_faults import freeze_producer, kill_producer, pause_producer, terminate_producer
from tests.faults.tab_faults import send_at_once
from tests.faults.verdict import Verdict

Trial = Callable[..., Awaitable[Verdict]]

_POSITIONS = 50
_AT_ONCE = 10
"""Clients that leave at the same time."""
_SCHEDULES = 200


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of the table. tokens: from where to where the token is drawn at which it happens; None: anywhere."""

    name: str
    times: int
    trial: Trial
    tokens: tuple[int, int] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One trial, or some that need not wait for each other.

    name: by which it can be tried alone. Sample: "SIGSTOP, short:3". times: how many trials it is.
    details: what it does, where that is left to chance.
    """

    fault: str
    number: int
    run: Callable[[Rig], Awaitable[Verdict]]
    details: Sequence[str]
    times: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.fault}:{self.number}"


_AHEAD = {"RUN_LOG": "ahead"}
_SLOW = {"LEASE_SECONDS": "7"}
_ENQUEUE = {"RUN_CONFLICT": "enqueue"}
_REJECT = {"RUN_CONFLICT": "reject"}

# Ordered so that the servers are seldom set anew.
_FAULTS: Sequence[Fault] = (
    Fault("retry with key", 20, with_key, (1, 90)),
    Fault("retry with key, at once", 5, partial(with_key_at_once, times=6)),
    Fault("key of another request", 1, with_key_of_another_request),
    Fault("repeat without key", 3, without_key),
    Fault("retry without head", 5, partial(without_head, kills_the_bridge=False)),
    Fault("retry without head, bridge killed", 5, partial(without_head, kills_the_bridge=True)),
    Fault("cancel", 10, partial(cancel, from_the_other=False), (1, 300)),
    Fault("cancel by the other server", 10, partial(cancel, from_the_other=True), (1, 300)),
    Fault("cancel, model", 5, partial(cancel_model, from_the_other=False)),
    Fault("cancel by the other server, model", 5, partial(cancel_model, from_the_other=True)),
    Fault("leave, model", 2, leave_model),
    Fault("two tabs, interrupt", 5, partial(send_at_once, policy="interrupt", by_page=False)),
    Fault("two tabs by page, interrupt", 5, partial(send_at_once, policy="interrupt", by_page=True)),
    Fault("stalled readers", 3, stall_much),
    Fault("stalled page", 3, stall_page_much),
    Fault("kill -9 of the server", 150, kill_producer, (1, 390)),
    Fault("kill -9 of the bridge", 20, kill_and_come_back, (1, 300)),
    Fault("kill -9 of the bridge, nobody returns", 5, kill_for_good, (1, 50)),
    Fault("SIGSTOP of the bridge", 2, freeze_bridge, (1, 50)),
    Fault("SIGTERM, time to finish", 5, partial(terminate_producer, tokens=100, finishes=True), (40, 90)),
    Fault("SIGTERM, no time to finish", 5, partial(terminate_producer, tokens=4000, finishes=False), (1, 50)),
    Fault("SIGSTOP beyond the lease", 10, freeze_producer, (1, 200)),
    Fault("SIGSTOP until noticed", 2, partial(freeze_producer, until_the_page_notices=True), (1, 200)),
    Fault("SIGSTOP, short", 5, partial(pause_producer, seconds=0.4), (1, 200)),
    Fault("PostgreSQL restarted, fast", 10, partial(restart, mode="fast"), (1, 300)),
    Fault("PostgreSQL restarted, immediate", 10, partial(restart, mode="immediate"), (1, 300)),
    Fault("PostgreSQL away beyond the lease", 3, partial(restart, mode="fast", away=4.0), (1, 300)),
    Fault("bridge side cut", 5, partial(lose_bridge_side, how="cut", seconds=0.5), (1, 200)),
    Fault("bridge side silent", 5, partial(lose_bridge_side, how="stall", seconds=1.0), (1, 200)),
    Fault("database side cut, 1 s", 5, partial(lose_database_for_a_moment, how="cut"), (1, 200)),
    Fault("database side silent, 1 s", 5, partial(lose_database_for_a_moment, how="stall"), (1, 200)),
    Fault("database away at the end", 5, partial(lose_database_for_a_moment, how="cut", ends_meanwhile=True), (1, 200)),
    Fault("database side cut beyond the lease", 5, partial(lose_database_beyond_the_lease, how="cut"), (1, 200)),
    Fault("database side silent beyond the lease", 5, partial(lose_database_beyond_the_lease, how="stall"), (1, 200)),
    Fault("kill -9 of the server, RUN_LOG=ahead", 40, kill_producer, (1, 390), _AHEAD),
    Fault("kill -9 of the server, default lease", 10, kill_producer, (1, 390), _SLOW),
    Fault("two tabs, enqueue", 5, partial(send_at_once, policy="enqueue", by_page=False), None, _ENQUEUE),
    Fault("two tabs by page, enqueue", 5, partial(send_at_once, policy="enqueue", by_page=True), None, _ENQUEUE),
    Fault("two tabs, reject", 5, partial(send_at_once, policy="reject", by_page=False), None, _REJECT),
    Fault("two tabs by page, reject", 5, partial(send_at_once, policy="reject", by_page=True), None, _REJECT),
)


def long_plan(seed: str, scale: float) -> list[Attempt]:
    """All attempts that a seed stands for. scale: how many of them; 1 is the whole."""
    usual, unusual = _parted(_FAULTS)
    return [
        *_clients(scale),
        *(attempt for fault in usual for attempt in _attempts(fault, seed, scale)),
        *_schedules(seed, scale),
        *(attempt for fault in unusual for attempt in _attempts(fault, seed, scale)),
    ]


def _parted(faults: Sequence[Fault]) -> tuple[list[Fault], list[Fault]]:
    return [fault for fault in faults if not fault.settings], [fault for fault in faults if fault.settings]


def _times(times: int, scale: float) -> range:
    return range(max(1, round(times * scale)))


def _attempts(fault: Fault, seed: str, scale: float) -> Iterator[Attempt]:
    for number in _times(fault.times, scale):
        if fault.tokens is None:
            yield Attempt(fault.name, number, fault.trial, [], settings=fault.settings)
            continue
        token = random.Random(f"{seed}/{fault.name}/{number}").randint(*fault.tokens)
        run = partial(fault.trial, token=token)
        yield Attempt(fault.name, number, run, [f"at token {token}"], settings=fault.settings)


def _clients(scale: float) -> Iterator[Attempt]:
    """Each kind of client at each position of a token."""
    positions = range(1, _POSITIONS + 1, max(1, round(1 / scale)))
    for kind, trial in CLIENTS.items():
        for number, start in enumerate(range(0, len(positions), _AT_ONCE)):
            tokens = positions[start : start + _AT_ONCE]
            run = partial(at_once, trials=[partial(trial, token=token) for token in tokens])
            yield Attempt(f"client: {kind}", number, run, [f"at tokens {[*tokens]}"], len(tokens))


def _schedules(seed: str, scale: float) -> Iterator[Attempt]:
    for number in _times(_SCHEDULES, scale):
        steps = draw_schedule(f"{seed}/{number}")
        yield Attempt("random schedule", number, partial(run_schedule, steps=steps), [*map(str, steps)])


async def at_once(rig: Rig, trials: Sequence[Trial]) -> Verdict:
    """Trials that don't get in each other's way."""
    verdict = Verdict()
    for part in await asyncio.gather(*(trial(rig) for trial in trials)):
        verdict.add(part)
    return verdict
