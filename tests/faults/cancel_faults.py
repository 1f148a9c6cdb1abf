"""Cancelling from wherever: the page's stream ends cleanly and soon, and the model's own connection is closed."""

from __future__ import annotations

import asyncio
import time

from tests.faults.conversation import open_conversation
from tests.faults.invariants import judge
from tests.faults.rig import Rig
from tests.faults.server_faults import END_SECONDS
from tests.faults.verdict import Verdict

CANCEL_SECONDS = 0.25 + 0.1
"""A cancel, and a flush of the log."""
_MODEL_SECONDS, _MODEL_TOKENS = 0.25, 5


async def cancel(rig: Rig, token: int, *, from_the_other: bool) -> Verdict:
    """CancelRun mid-answer, by the server that makes the answer or by the other one."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        page = await talk.say("count 4000 0.005")
        await page.witness.has_tokens(token)
        maker = rig.server_of(page.witness.pid)
        moment = await talk.cancel(rig.other_than(maker) if from_the_other else maker, page.witness.run_id)
        await page.witness.has_ended(END_SECONDS)
        took = page.witness.ended_at - moment
        verdict.recovery = took
        verdict.expect(page.witness.end == "clean", f"expected a clean end of what was cancelled: {page.witness}")
        verdict.expect(took <= CANCEL_SECONDS, f"expected the end within {CANCEL_SECONDS} s, it took {took:.3f} s")
        again = await talk.cancel(maker, page.witness.run_id)
        verdict.expect(time.monotonic() - again < 1, "expected a second cancel to change nothing, at once")
        verdict.add(await judge(talk))
    return verdict


async def cancel_model(rig: Rig, *, from_the_other: bool) -> Verdict:
    """The model is told by the end of its connection, within five tokens and 250 ms."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        page = await talk.say("model")
        await page.witness.has_tokens(5)
        maker = rig.server_of(page.witness.pid)
        said, moment = rig.model.tokens_sent, time.monotonic()
        by = rig.other_than(maker) if from_the_other else maker
        cancelling = asyncio.create_task(talk.cancel(by, page.witness.run_id))
        took = await _until_the_model_is_left(rig, moment)
        more = rig.model.tokens_sent - said
        await cancelling
        verdict.recovery = took
        verdict.expect(took <= _MODEL_SECONDS, f"expected the model to be stopped in 250 ms, it took {took:.3f} s")
        verdict.expect(more <= _MODEL_TOKENS, f"expected the model to be stopped in 5 tokens, it said {more}")
        await page.witness.has_ended(END_SECONDS)
        verdict.expect(page.witness.end == "clean", f"expected a clean end of what was cancelled: {page.witness}")
        verdict.add(await judge(talk))
    return verdict


async def leave_model(rig: Rig) -> Verdict:
    """The only watcher of a model's answer leaves: the model is stopped when the grace is over."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        page = await talk.say("model")
        await page.witness.has_tokens(5)
        moment = time.monotonic()
        await page.reset()
        took = await _until_the_model_is_left(rig, moment)
        verdict.recovery = took
        is_in_time = rig.grace - 0.3 <= took <= rig.grace + 1.0
        verdict.expect(is_in_time, f"expected the model to be stopped after {rig.grace:g} s, it took {took:.2f} s")
        verdict.add(await judge(talk))
    return verdict


async def _until_the_model_is_left(rig: Rig, moment: float) -> float:
    """Seconds from a moment until nobody listens to the model."""
    async with asyncio.timeout(END_SECONDS):
        while rig.model.open_streams:
            await asyncio.sleep(0.001)
    return time.monotonic() - moment
