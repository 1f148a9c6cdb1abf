"""Clients that ask twice: with a key, without one, and without having had the head of their answer."""

from __future__ import annotations

import asyncio
import uuid

from tests.faults.conversation import Conversation, open_conversation
from tests.faults.invariants import judge
from tests.faults.rig import Rig
from tests.faults.server_faults import END_SECONDS
from tests.faults.verdict import Verdict

_TEXT = "count 100 0.01"
_TOKENS = 100


async def with_key(rig: Rig, token: int) -> Verdict:
    """Left in the middle and asked again with the same key: the rest. Asked once more when it has ended: all of it."""
    verdict = Verdict()
    key = uuid.uuid4().hex
    async with open_conversation(rig) as talk:
        first = await talk.say(_TEXT, key=key)
        await first.witness.has_tokens(token)
        await first.reset()
        rest = await talk.repeat(first, key=key, after=first.witness)
        await rest.witness.has_ended(END_SECONDS)
        whole = await talk.repeat(first, key=key)
        await whole.witness.has_ended(END_SECONDS)
        for page in (rest, whole):
            is_whole = page.witness.end == "clean" and page.witness.next_token == _TOKENS
            verdict.expect(is_whole, f"expected what was asked for before: {page.witness}")
        await _expect_messages(talk, 1, verdict)
        verdict.add(await judge(talk))
    return verdict


async def with_key_at_once(rig: Rig, times: int) -> Verdict:
    """The same request several times at once, on both servers and through the bridge: one answer, seen by all."""
    verdict = Verdict()
    key = uuid.uuid4().hex
    async with open_conversation(rig) as talk:
        calls = [talk.say_to(rig.servers[number % 2], _TEXT, key=key) for number in range(times)]
        pages = [await talk.say(_TEXT, key=key)]
        pages.append(await talk.repeat(pages[0], key=key))
        await talk.all_have_ended(END_SECONDS)
        for witness in [call.witness for call in calls] + [page.witness for page in pages]:
            verdict.expect(len(witness.tokens) == _TOKENS, f"expected the one answer: {witness}")
        await _expect_messages(talk, 1, verdict)
        verdict.add(await judge(talk))
    return verdict


async def with_key_of_another_request(rig: Rig) -> Verdict:
    """A key that was used for something else is refused."""
    verdict = Verdict()
    key = uuid.uuid4().hex
    async with open_conversation(rig) as talk:
        await (await talk.say("count 5", key=key)).witness.has_ended(END_SECONDS)
        other = await talk.say("count 6", key=key)
        await other.witness.has_ended(END_SECONDS)
        verdict.expect(not other.witness.tokens, f"expected a refusal: {other.witness}")
        await _expect_messages(talk, 1, verdict)
        verdict.add(await judge(talk))
    return verdict


async def without_key(rig: Rig) -> Verdict:
    """Somebody who says the same thing twice, and saw the first answer, is answered twice."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        await (await talk.say("count 3")).witness.has_ended(END_SECONDS)
        for _ in range(2):
            page = await talk.say(_TEXT, frame="frame-1")
            await page.witness.has_tokens(1)
            await page.witness.has_ended(END_SECONDS)
            verdict.expect(len(page.witness.tokens) == _TOKENS, f"expected an answer: {page.witness}")
        await _expect_messages(talk, 3, verdict)
        verdict.add(await judge(talk))
    return verdict


async def without_head(rig: Rig, *, kills_the_bridge: bool) -> Verdict:
    """A page that never got the head of its answer repeats its POST, and is answered once."""
    verdict = Verdict()
    async with open_conversation(rig) as talk:
        await (await talk.say("count 3")).witness.has_ended(END_SECONDS)
        for server in rig.servers:
            server.bridge_side.stall("down")
        try:
            first = await talk.say(_TEXT, frame="frame-1")
            await _until_runs(talk, 2)
            if kills_the_bridge:
                rig.bridge.kill()
                rig.start(rig.bridge)
            else:
                await first.reset()
        finally:
            for server in rig.servers:
                server.bridge_side.resume()
        await rig.ready()
        second = await talk.repeat(first, frame="frame-1")
        await second.witness.has_ended(END_SECONDS)
        verdict.expect(first.status == 0, f"expected no head, got {first.status}")
        verdict.expect(len(second.witness.tokens) == _TOKENS, f"expected the one answer: {second.witness}")
        await _expect_messages(talk, 2, verdict)
        verdict.add(await judge(talk))
    return verdict


async def _until_runs(talk: Conversation, count: int) -> None:
    async with asyncio.timeout(END_SECONDS):
        while len(await talk.rig.ledger.runs(talk.user)) < count:
            await asyncio.sleep(0.02)


async def _expect_messages(talk: Conversation, count: int, verdict: Verdict) -> None:
    items = await talk.rig.ledger.items(talk.user)
    messages = [item for item in items if item.kind == "user_message"]
    threads = {item.thread_id for item in items}
    verdict.expect(len(messages) == count, f"expected {count} messages, got {len(messages)}")
    verdict.expect(len(threads) == 1, f"expected one thread, got {len(threads)}")
