"""A random schedule: people send, leave, cancel and come back while servers and bridge are killed. A seed says all."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from tests.faults.conversation import Conversation, open_conversation
from tests.faults.invariants import judge
from tests.faults.program import Program
from tests.faults.rig import Rig
from tests.faults.server_faults import END_SECONDS
from tests.faults.verdict import Verdict
from tests.faults.violation import ViolationError

_TALKS = 2
_WEIGHTS = {
    "say on page": 5,
    "say to server": 4,
    "leave": 2,
    "cancel": 3,
    "resume": 5,
    "kill server": 1.5,
    "kill bridge": 1,
    "pause server": 1,
    "freeze server": 0.5,
    "cut bridge side": 1,
    "cut database side": 1,
    "restart database": 0.5,
}
_SHORT = 0.4
"""Seconds without a heartbeat beyond the usual one that the shortest lease here bears."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is done, on which of the conversations and by which server, and how long to wait afterwards.

    draw: from 0 to 1, whatever else is left to chance.
    """

    what: str
    talk: int
    server: int
    draw: float
    pause: float

    def __str__(self) -> str:
        """As it is printed when a schedule fails."""
        where = f"conversation {self.talk}, server {'ab'[self.server]}"
        return f"{self.what} ({where}, {self.draw:.2f}), {self.pause:.2f} s"


def draw_schedule(seed: str) -> list[Step]:
    """The steps that a seed stands for. It begins with something that can be broken."""
    chance = random.Random(seed)
    whats = ["say on page", *chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=chance.randint(5, 12))]
    return [
        Step(what, chance.randrange(_TALKS), chance.randrange(2), chance.random(), chance.uniform(0.02, 0.5))
        for what in whats
    ]


async def run_schedule(rig: Rig, steps: Sequence[Step]) -> Verdict:
    """Take the steps, mend what is broken, and look at what is left."""
    verdict = Verdict()
    async with AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(open_conversation(rig)) for _ in range(_TALKS)]
        performance = Performance(rig, talks)
        for step in steps:
            await performance.take(step)
            await asyncio.sleep(step.pause)
        moment = time.monotonic()
        await rig.mend()
        for talk in talks:
            await talk.all_have_ended(END_SECONDS)
            if talk.witnesses:
                verdict.add(await judge(talk))
        verdict.recovered_since(moment)
    return verdict


class Performance:
    """The steps as they are taken."""

    def __init__(self, rig: Rig, talks: Sequence[Conversation]) -> None:
        self._rig = rig
        self._talks = talks

    async def take(self, step: Step) -> None:
        """Take a step. One that makes no sense just now is left out."""
        talk = self._talks[step.talk]
        if step.what in {"say on page", "say to server"}:
            await self._say(talk, step)
        elif step.what in {"leave", "cancel", "resume"}:
            await self._watch(talk, step)
        else:
            await self._break(step)

    async def _say(self, talk: Conversation, step: Step) -> None:
        text = f"count {20 + int(step.draw * 300)} 0.005"
        if step.what == "say on page":
            await talk.say(text)
        else:
            talk.say_to(self._rig.servers[step.server], text)

    async def _watch(self, talk: Conversation, step: Step) -> None:
        known = [witness for witness in talk.witnesses if witness.run_id]
        if not known:
            return
        witness = known[int(step.draw * len(known))]
        server = self._rig.servers[step.server]
        if step.what == "leave":
            await talk.leave(witness)
        elif step.what == "resume":
            talk.resume(server, witness.run_id, witness if step.pause < 0.25 else None)
        else:
            with suppress(ViolationError):  # that server may be away just now
                await talk.cancel(server, witness.run_id)

    async def _break(self, step: Step) -> None:
        server = self._rig.servers[step.server]
        if step.what == "kill server":
            self._kill(server.program)
        elif step.what == "kill bridge":
            self._kill(self._rig.bridge)
        elif step.what in {"pause server", "freeze server"}:
            await self._freeze(server.program, _SHORT if step.what == "pause server" else self._rig.lease + 1.5)
        elif step.what == "restart database":
            await self._rig.postgres.restart("fast" if step.draw < 0.5 else "immediate")
        else:
            relay = server.bridge_side if step.what == "cut bridge side" else server.database_side
            relay.cut()
            await asyncio.sleep(step.draw * _SHORT)
            relay.resume()

    def _kill(self, program: Program) -> None:
        if not program.is_running:
            return
        pid = program.pid
        moment = program.kill()
        self._rig.start(program)
        for talk in self._talks:
            talk.forgive_runs_of(pid, moment)

    async def _freeze(self, program: Program, seconds: float) -> None:
        if not program.is_running:
            return
        moment = program.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        woken = program.send(signal.SIGCONT)
        if seconds > self._rig.lease:
            for talk in self._talks:
                talk.forgive_runs_of(program.pid, moment, woken)
