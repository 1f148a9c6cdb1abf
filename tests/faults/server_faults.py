"""Faults of a server: killed, told to stop, frozen."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.faults.conversation import Conversation, open_conversation
from tests.faults.invariants import judge
from tests.faults.rig import Rig, Server
from tests.faults.verdict import Verdict
from tests.faults.witness import Witness

END_SECONDS = 10.0
"""How long after a fault a stream may go on that has to end."""
FROZEN_PEER_SECONDS = 15.0
"""How long it may take to notice that the other side of a connection is frozen."""
_STALE_SECONDS = 2.0


async def kill_producer(rig: Rig, token: int, tokens: int = 400, delay: float = 0.005) -> Verdict:
    """kill -9 of the server that answers, watched by a page and from the other server.

    One comes back to the other server at once, who may have seen more than will be kept.
    """
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        server, page, foreign = await _watched_twice(talk, f"count {tokens} {delay}", token)
        moment = server.program.kill()
        talk.forgive(page.run_id, moment)
        rig.start(server.program)
        returned = talk.resume(rig.other_than(server), page.run_id, after=page).witness
        await talk.all_have_ended(END_SECONDS)
        verdict.recovered_since(moment)
        for witness in (page, foreign, returned):
            _ended_as_interrupted(verdict, witness)
        verdict.add(await judge(talk))
        is_told_what_is_kept = foreign.end == "clean" or not foreign.tokens or foreign.texts != []
        verdict.expect(is_told_what_is_kept, f"expected the kept message: {foreign}")
    return verdict


async def terminate_producer(rig: Rig, token: int, tokens: int, *, finishes: bool) -> Verdict:
    """SIGTERM of the server that answers, which has time to finish or not. Newcomers are answered by the other."""
    verdict = Verdict()
    async with open_conversation(rig) as talk, open_conversation(rig) as newcomer:
        server, page, foreign = await _watched_twice(talk, f"count {tokens} 0.01", token)
        moment = server.program.send(signal.SIGTERM)
        await asyncio.sleep(0.1)
        late = await newcomer.say("count 20 0.005")
        await talk.all_have_ended(END_SECONDS)
        verdict.recovered_since(moment)
        code = await server.program.ends()
        rig.start(server.program)
        verdict.expect(code == 0, f"expected {server.program.name} to exit with 0, got {code}")
        for witness in (page, foreign):
            verdict.expect(witness.end == "clean" or not finishes, f"expected it to be finished: {witness}")
            _ended_as_interrupted(verdict, witness)
        await late.witness.has_ended(END_SECONDS)
        verdict.expect(len(late.witness.tokens) == 20, f"expected an answer of the other server: {late.witness}")
        verdict.add(await judge(talk))
        verdict.add(await judge(newcomer))
    return verdict


async def freeze_producer(rig: Rig, token: int, *, until_the_page_notices: bool = False) -> Verdict:
    """SIGSTOP of the server that answers, for longer than its lease. What it does afterwards may change nothing."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        server, page, foreign = await _watched_twice(talk, "count 4000 0.005", token)
        moment = server.program.send(signal.SIGSTOP)
        try:
            await foreign.has_ended(END_SECONDS)
            verdict.recovered_since(moment)
            await rig.ledger.until_quiet(talk.user, END_SECONDS)
            if until_the_page_notices:
                await page.has_ended(FROZEN_PEER_SECONDS - (time.monotonic() - moment))
            before = await rig.ledger.snapshot(talk.user)
        finally:
            woken = server.program.send(signal.SIGCONT)
        talk.forgive(page.run_id, moment, woken)
        await asyncio.sleep(_STALE_SECONDS)
        verdict.expect(before == await rig.ledger.snapshot(talk.user), "expected a stale server to write nothing")
        await talk.all_have_ended(END_SECONDS)
        for witness in (page, foreign):
            _ended_as_interrupted(verdict, witness)
        await _answers_again(talk, server, verdict)
        verdict.add(await judge(talk))
    return verdict


async def pause_producer(rig: Rig, token: int, seconds: float) -> Verdict:
    """SIGSTOP for less than the lease: nobody may take the run away."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        server, page, foreign = await _watched_twice(talk, "count 300 0.005", token)
        moment = server.program.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        server.program.send(signal.SIGCONT)
        await talk.all_have_ended(END_SECONDS)
        verdict.recovered_since(moment)
        for witness in (page, foreign):
            verdict.expect(witness.end == "clean", f"expected a clean end after a short pause: {witness}")
        verdict.add(await judge(talk))
    return verdict


async def _watched_twice(talk: Conversation, text: str, token: int) -> tuple[Server, Witness, Witness]:
    """An answer that has come to a token, seen by a page and from the server that doesn't make it."""
    page = await talk.say(text)
    await page.witness.has_tokens(1)
    server = talk.rig.server_of(page.witness.pid)
    foreign = talk.resume(talk.rig.other_than(server), page.witness.run_id)
    await foreign.witness.has_run()
    await page.witness.has_tokens(token)
    return server, page.witness, foreign.witness


async def _answers_again(talk: Conversation, server: Server, verdict: Verdict) -> None:
    """One that was taken for dead is a server like any other again."""
    call = talk.say_to(server, "count 20 0.005")
    await call.witness.has_ended(END_SECONDS)
    verdict.expect(call.witness.end == "clean", f"expected an answer of the server that was frozen: {call.witness}")


def _ended_as_interrupted(verdict: Verdict, witness: Witness) -> None:
    """A clean end says that nothing was missing, which is looked into elsewhere."""
    is_told = witness.end == "error" and witness.allows_retry
    verdict.expect(is_told or witness.end == "clean", f"expected an error that allows a retry: {witness}")
