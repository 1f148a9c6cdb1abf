"""Faults of PostgreSQL: restarted in the middle of answers, or gone for a while."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from tests.faults.conversation import open_conversation
from tests.faults.invariants import judge
from tests.faults.rig import Rig
from tests.faults.server_faults import END_SECONDS
from tests.faults.verdict import Verdict

Mode = Literal["fast", "immediate"]


async def restart(rig: Rig, token: int, mode: Mode, away: float = 0.0) -> Verdict:
    """PostgreSQL stops and starts again, at once or after some seconds, while both servers answer.

    What was shown is kept, and where it was away for less than the lease the answers are whole.
    """
    verdict = Verdict()
    async with open_conversation(rig) as one, open_conversation(rig) as two:
        calls = [talk.say_to(server, "count 500 0.005") for talk, server in zip((one, two), rig.servers, strict=True)]
        foreign = one.resume(rig.servers[1], await calls[0].witness.has_run())
        for call in calls:
            await call.witness.has_tokens(token)
        moment = time.monotonic()
        await rig.postgres.stop(mode)
        await asyncio.sleep(away)
        await rig.postgres.start()
        for watcher in (*calls, foreign):
            await watcher.witness.has_ended(END_SECONDS + away + 2.5)
        verdict.recovered_since(moment)
        for call in calls:
            is_whole = call.witness.end == "clean" and len(call.witness.tokens) == 500
            verdict.expect(is_whole or away >= rig.lease, f"expected a whole answer: {call.witness}")
        await rig.ready()
        for talk in (one, two):
            verdict.add(await judge(talk))
    return verdict
