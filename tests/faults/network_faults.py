"""Faults of connections: between bridge and server, and between server and PostgreSQL, cut or silent."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Literal

from tests.faults.conversation import open_conversation
from tests.faults.invariants import judge
from tests.faults.rig import Rig
from tests.faults.server_faults import END_SECONDS
from tests.faults.verdict import Verdict

How = Literal["cut", "stall"]
_STALE_SECONDS = 2.0
_UNNOTICED_SECONDS = 0.3
"""How long a server may go on to show what it can't log: for the others it is dead, and this its last moment."""


async def lose_bridge_side(rig: Rig, token: int, how: How, seconds: float) -> Verdict:
    """The connection between bridge and server is gone for a while: a client that repeats its request gets the rest.

    Where the bridge goes on by itself, or the silence was short, the page's own stream has it all.
    """
    verdict = Verdict()
    key = uuid.uuid4().hex
    async with open_conversation(rig) as talk:
        first = await talk.say("count 400 0.005", key=key)
        await first.witness.has_tokens(token)
        server = rig.server_of(first.witness.pid)
        moment = time.monotonic()
        server.bridge_side.cut() if how == "cut" else server.bridge_side.stall()
        await asyncio.sleep(seconds)
        server.bridge_side.resume()
        await first.witness.has_ended(END_SECONDS)
        verdict.recovered_since(moment)
        if first.witness.end != "clean":
            verdict.expect(first.witness.allows_retry, f"expected an error that allows a retry: {first.witness}")
            rest = await talk.repeat(first, key=key, after=first.witness)
            await rest.witness.has_ended(END_SECONDS)
            verdict.expect(rest.witness.next_token == 400, f"expected the rest: {rest.witness}")
        verdict.add(await judge(talk))
    return verdict


async def lose_database_for_a_moment(
    rig: Rig, token: int, how: How, *, seconds: float = 1.0, ends_meanwhile: bool = False
) -> Verdict:
    """A server has no database for less than its lease: nobody notices.

    Where the answer ends meanwhile, its readers may be told of an error, but all of it is kept.
    """
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        page = await talk.say(f"count {token + (100 if ends_meanwhile else 250)} 0.005")
        await page.witness.has_tokens(token)
        server = rig.server_of(page.witness.pid)
        foreign = talk.resume(rig.other_than(server), page.witness.run_id)
        await foreign.witness.has_run()
        moment = time.monotonic()
        server.database_side.cut() if how == "cut" else server.database_side.stall()
        await asyncio.sleep(seconds)
        server.database_side.resume()
        await talk.all_have_ended(END_SECONDS)
        verdict.recovered_since(moment)
        for witness in (page.witness, foreign.witness):
            is_told = ends_meanwhile and witness.end == "error" and witness.allows_retry
            verdict.expect(is_told or witness.end == "clean", f"expected a clean end after a short loss: {witness}")
        verdict.add(await judge(talk))
    return verdict


async def lose_database_beyond_the_lease(rig: Rig, token: int, how: How) -> Verdict:
    """A server has no database for longer than its lease: the other one ends its run, and it shows nothing more."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        page = await talk.say("count 4000 0.005")
        await page.witness.has_tokens(token)
        server = rig.server_of(page.witness.pid)
        foreign = talk.resume(rig.other_than(server), page.witness.run_id)
        await foreign.witness.has_run()
        moment = time.monotonic()
        server.database_side.cut() if how == "cut" else server.database_side.stall()
        talk.forgive(page.witness.run_id, moment, moment + _UNNOTICED_SECONDS)
        await foreign.witness.has_ended(END_SECONDS)
        verdict.recovered_since(moment)
        await rig.ledger.until_quiet(talk.user, END_SECONDS)
        before = await rig.ledger.snapshot(talk.user)
        server.database_side.resume()
        await asyncio.sleep(_STALE_SECONDS)
        verdict.expect(before == await rig.ledger.snapshot(talk.user), "expected a stale server to write nothing")
        await talk.all_have_ended(END_SECONDS)
        for witness in (page.witness, foreign.witness):
            verdict.expect(witness.end == "error", f"expected an error that allows a retry: {witness}")
        await rig.ready()
        verdict.add(await judge(talk))
    return verdict
