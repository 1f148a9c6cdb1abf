"""Faults of the bridge: killed and started again, with clients that come back and clients that don't; frozen."""

from __future__ import annotations

import signal
import time
import uuid

from tests.faults.conversation import Conversation, open_conversation
from tests.faults.invariants import judge
from tests.faults.rig import Rig
from tests.faults.server_faults import END_SECONDS, FROZEN_PEER_SECONDS
from tests.faults.verdict import Verdict

_EARLY = 0.3
"""Seconds by which a run may seem to be stopped too early: the client's leaving is noticed here before there."""


async def kill_and_come_back(rig: Rig, token: int) -> Verdict:
    """kill -9 of the bridge; the client repeats its request with the same key and gets the rest once."""
    verdict = Verdict()
    key = uuid.uuid4().hex
    async with open_conversation(rig) as talk:
        first = await talk.say("count 400 0.005", key=key)
        await first.witness.has_tokens(token)
        moment = rig.bridge.kill()
        rig.start(rig.bridge)
        await first.witness.has_ended(END_SECONDS)
        await rig.ready()
        second = await talk.repeat(first, key=key, after=first.witness)
        await second.witness.has_tokens(1)
        verdict.recovered_since(moment)
        await second.witness.has_ended(END_SECONDS)
        verdict.expect(second.witness.end == "clean", f"expected the rest: {second.witness}")
        verdict.expect(second.witness.next_token == 400, f"expected 400 tokens in all: {second.witness}")
        verdict.add(await judge(talk))
    return verdict


async def kill_for_good(rig: Rig, token: int) -> Verdict:
    """kill -9 of the bridge; nobody comes back, and the run ends after its grace with what it said."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        page = await talk.say("count 4000 0.01")
        await page.witness.has_tokens(token)
        moment = rig.bridge.kill()
        rig.start(rig.bridge)
        await is_cancelled_after_grace(talk, moment, verdict)
        await rig.ready()
        verdict.add(await judge(talk))
    return verdict


async def freeze(rig: Rig, token: int) -> Verdict:
    """SIGSTOP of the bridge: the server notices, and stops what nobody watches any more."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        page = await talk.say("count 8000 0.01")
        await page.witness.has_tokens(token)
        moment = rig.bridge.send(signal.SIGSTOP)
        try:
            await is_cancelled_after_grace(talk, moment, verdict, FROZEN_PEER_SECONDS)
        finally:
            rig.bridge.send(signal.SIGCONT)
        await rig.ready()
        await page.witness.has_ended(END_SECONDS)
        # It was away while the run ended, and may have been told so or not.
        page.witness.end = "left"
        verdict.add(await judge(talk))
    return verdict


async def is_cancelled_after_grace(talk: Conversation, left: float, verdict: Verdict, noticing: float = 2.0) -> None:
    """The last watcher has left: the run goes on for its grace, and is stopped then."""
    grace = talk.rig.grace
    await talk.rig.ledger.until_quiet(talk.user, max(0.0, left + noticing + grace + 1.0 - time.monotonic()))
    lasted = verdict.recovered_since(left)
    verdict.expect(lasted >= grace - _EARLY, f"expected a run to go on for {grace:g} s, not {lasted:.2f} s")
    (run,) = await talk.rig.ledger.runs(talk.user)
    verdict.expect(run.state == "cancelled", f"expected a cancelled run, got {run}")
    marks = [item for item in await talk.rig.ledger.items(talk.user) if item.is_hidden]
    verdict.expect(len(marks) == 1, f"expected one hidden mark of the cancel, got {marks}")
