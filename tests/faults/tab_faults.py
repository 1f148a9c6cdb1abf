"""Two tabs that send at once on one thread, under each RUN_CONFLICT."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from tests.faults.conversation import Conversation, open_conversation
from tests.faults.invariants import judge
from tests.faults.rig import Rig
from tests.faults.server_faults import END_SECONDS
from tests.faults.verdict import Verdict
from tests.faults.witness import Witness

Policy = Literal["interrupt", "enqueue", "reject"]
_TOKENS = 100


async def send_at_once(rig: Rig, policy: Policy, *, by_page: bool) -> Verdict:
    """Two tabs send at the same time, by the bridge or each to a server of its own, which have RUN_CONFLICT=policy."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        await (await talk.say("count 3")).witness.has_ended(END_SECONDS)
        moment = time.monotonic()
        tabs = await _send_twice(talk, f"count {_TOKENS} 0.01", by_page=by_page)
        await talk.all_have_ended(END_SECONDS)
        verdict.recovered_since(moment)
        _judge_tabs(verdict, policy, tabs)
        await _judge_runs(talk, policy, verdict)
        verdict.add(await judge(talk))
    return verdict


async def _send_twice(talk: Conversation, text: str, *, by_page: bool) -> list[Witness]:
    if by_page:
        return [(await talk.say(text)).witness for _ in range(2)]
    return [talk.say_to(server, text).witness for server in talk.rig.servers]


def _judge_tabs(verdict: Verdict, policy: Policy, tabs: Sequence[Witness]) -> None:
    ends = f"{[*map(str, tabs)]}"
    whole = [tab for tab in tabs if tab.end == "clean" and len(tab.tokens) == _TOKENS]
    if policy == "enqueue":
        verdict.expect(len(whole) == 2, f"expected both answers, one after the other: {ends}")
        return
    verdict.expect(len(whole) == 1, f"expected one whole answer: {ends}")
    (other,) = [tab for tab in tabs if tab is not whole[0]] if len(whole) == 1 else (None,)
    if other is None:
        return
    if policy == "interrupt":
        verdict.expect(other.end == "clean", f"expected the answer that was stopped to end cleanly: {ends}")
    else:
        is_refused = other.end == "error" or "ABORTED" in other.detail
        verdict.expect(is_refused and not other.tokens, f"expected one tab to be refused: {ends}")


async def _judge_runs(talk: Conversation, policy: Policy, verdict: Verdict) -> None:
    await talk.rig.ledger.until_quiet(talk.user, END_SECONDS)
    states = [run.state for run in await talk.rig.ledger.runs(talk.user)]
    expected = {
        "interrupt": ["completed", "cancelled", "completed"],
        "enqueue": ["completed", "completed", "completed"],
        "reject": ["completed", "completed"],
    }[policy]
    verdict.expect(states == expected, f"expected runs that are {expected}, got {states}")
