"""Faults of clients: five ways to leave or to stall, at any token; and readers that let megabytes wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Literal

from tests.faults.bridge_faults import is_cancelled_after_grace
from tests.faults.conversation import open_conversation
from tests.faults.invariants import judge
from tests.faults.rig import Rig
from tests.faults.server_faults import END_SECONDS
from tests.faults.verdict import Verdict
from tests.faults.witness import Witness

Leaving = Literal["close", "reset", "half_close"]
Stalling = Literal["crawl", "freeze"]

_SMALL_BUFFER = 4096
_LONGEST_GAP = 2.0
"""Seconds without a token after which a reader counts as held up, at a token each few milliseconds."""
_RSS_LIMIT = 32 * 2**20
"""What stalled readers may cost a server, all together: a third of what they miss."""
_PAGE_RSS_LIMIT = 8 * 2**20
"""What a stalled page may cost the bridge: less than what it misses."""


async def leave(rig: Rig, token: int, how: Leaving) -> Verdict:
    """The only watcher leaves: what was said is kept."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        page = await talk.say("count 4000 0.02")
        await page.witness.has_tokens(token)
        moment = time.monotonic()
        await {"close": page.close, "reset": page.reset, "half_close": page.half_close}[how]()
        await is_cancelled_after_grace(talk, moment, verdict)
        verdict.add(await judge(talk))
    return verdict


async def stall(rig: Rig, token: int, how: Stalling) -> Verdict:
    """The only watcher reads a byte a second, or nothing: the answer is made all the same, and waits for it."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        page = await talk.say("count 100 0.02", receive_buffer=_SMALL_BUFFER)
        await page.witness.has_tokens(token)
        moment = time.monotonic()
        page.crawl() if how == "crawl" else page.freeze()
        await rig.ledger.until_quiet(talk.user, END_SECONDS)
        page.thaw()
        await page.witness.has_ended(END_SECONDS)
        verdict.recovered_since(moment)
        verdict.expect(page.witness.end == "clean", f"expected the rest: {page.witness}")
        verdict.add(await judge(talk))
    return verdict


async def stall_much(rig: Rig, calls: int = 12, tokens: int = 400, padding: int = 20_000) -> Verdict:
    """Readers that stop reading while megabytes are said hold up nobody, cost little, and miss nothing.

    Each second one reads again while there is more to come, the others when there is no more.
    """
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        healthy = await talk.say(f"count {tokens} 0.01 {padding}")
        run_id = await healthy.witness.has_run()
        await healthy.witness.has_tokens(1)
        before = [server.program.rss for server in rig.servers]
        stalled = [talk.resume(server, run_id) for server in rig.servers for _ in range(calls)]
        for reader in stalled:
            await reader.witness.has_run()
            reader.freeze()
        await healthy.witness.has_tokens(tokens - 40)
        # Later on they all read at once in this very process, which holds up whoever it likes.
        _was_not_held_up(verdict, healthy.witness)
        growth = [server.program.rss - was for server, was in zip(rig.servers, before, strict=True)]
        for reader in stalled[::2]:
            reader.thaw()
        await healthy.witness.has_ended(END_SECONDS + tokens * 0.01)
        verdict.expect(healthy.witness.end == "clean", f"expected a clean end: {healthy.witness}")
        verdict.expect(max(growth) < _RSS_LIMIT, f"expected less than 32 MiB for stalled readers, got {growth}")
        moment = time.monotonic()
        for reader in stalled:
            reader.thaw()
        await asyncio.gather(*(reader.witness.has_ended(END_SECONDS) for reader in stalled))
        verdict.recovered_since(moment)
        for reader in stalled:
            verdict.expect(reader.witness.end == "clean", f"expected the rest of it: {reader.witness}")
        verdict.add(await judge(talk))
    return verdict


async def stall_page_much(rig: Rig, tokens: int = 300, padding: int = 40_000) -> Verdict:
    """A page that stops reading while megabytes are said: its stream may be given up, what was said is kept."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        page = await talk.say(f"count {tokens} 0.01 {padding}", receive_buffer=_SMALL_BUFFER)
        await page.witness.has_tokens(5)
        before = rig.bridge.rss
        page.freeze()
        await rig.ledger.until_quiet(talk.user, END_SECONDS + rig.grace + tokens * 0.01)
        growth = rig.bridge.rss - before
        verdict.expect(growth < _PAGE_RSS_LIMIT, f"expected less than 8 MiB for a stalled page, got {growth}")
        page.thaw()
        await page.witness.has_ended(END_SECONDS)
        verdict.add(await judge(talk))
    return verdict


CLIENTS: Mapping[str, Callable[..., Awaitable[Verdict]]] = {
    "close": partial(leave, how="close"),
    "RST": partial(leave, how="reset"),
    "half-close": partial(leave, how="half_close"),
    "one byte per second": partial(stall, how="crawl"),
    "frozen": partial(stall, how="freeze"),
}
"""The kinds of client; each is called with a rig and the token at which it does so."""


def _was_not_held_up(verdict: Verdict, witness: Witness) -> None:
    gaps = [later - earlier for earlier, later in zip(witness.times, witness.times[1:], strict=False)]
    longest = max(gaps, default=0.0)
    verdict.expect(longest < _LONGEST_GAP, f"expected no reader to be held up, {witness} was for {longest:.2f} s")
