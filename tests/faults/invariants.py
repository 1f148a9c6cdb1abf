"""What holds of a conversation whatever was broken: nothing lost, nothing twice, nothing stuck."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from server.runs.recovery import UNLOGGED_AT_MOST
from tests.faults.conversation import Conversation
from tests.faults.ledger import StoredItem, StoredRun
from tests.faults.verdict import Verdict
from tests.faults.witness import TOKEN, Witness

QUIET_SECONDS = 10.0
"""How long after a fault a run may still be active."""
_NEXT_SECONDS = 15.0
_NEXT_TOKENS = 20


@dataclass
class Turn:
    """A user's message on the thread, with what came after it and before the next."""

    message: StoredItem
    answers: list[StoredItem] = field(default_factory=list)

    @property
    def asked(self) -> int:
        """How many tokens the message asks for."""
        return int(self.message.text.split()[1]) if self.message.text.startswith("count ") else 0

    @property
    def kept(self) -> list[int]:
        """The numbers of the tokens that are on the thread."""
        return [int(number) for answer in self.answers for number in TOKEN.findall(answer.text)]

    @property
    def text(self) -> str:
        return "".join(answer.text for answer in self.answers)

    def described(self, run: StoredRun) -> str:
        """Which answer, and what is left of it."""
        return f"{run.run_id} ({run.state}, {len(self.kept)} tokens of {self.asked} kept)"


async def judge(talk: Conversation) -> Verdict:
    """Wait until nothing goes on, say one more thing, and compare what is stored with what everybody saw."""
    verdict = Verdict()
    await talk.rig.ledger.until_quiet(talk.user, QUIET_SECONDS)
    await _next_message_is_answered(talk, verdict)
    items, runs = await talk.rig.ledger.items(talk.user), await talk.rig.ledger.runs(talk.user)
    for thread_id, on_thread in groupby(items, key=lambda item: item.thread_id):
        turns = list(_turns_of(list(on_thread), verdict))
        _judge_thread(talk, turns, [run for run in runs if run.thread_id == thread_id], verdict)
    interrupted = {run.run_id for run in runs if run.state == "interrupted"}
    for witness in talk.witnesses:
        _judge_stream(witness, interrupted, verdict)
    return verdict


def _judge_stream(witness: Witness, interrupted: set[str], verdict: Verdict) -> None:
    verdict.problems += witness.oddities
    verdict.expect(witness.end != "", f"expected an end: {witness}")
    for last, number in witness.jumps:
        # What was said last may not be logged, so the end that another server gives to a run is numbered far behind it.
        is_end_of_interrupted = last < UNLOGGED_AT_MOST < number and witness.run_id in interrupted
        verdict.expect(is_end_of_interrupted, f"expected event {last + 1} after {last}, got {number}: {witness}")


async def _next_message_is_answered(talk: Conversation, verdict: Verdict) -> None:
    page = await talk.say(f"count {_NEXT_TOKENS}")
    await page.witness.has_ended(_NEXT_SECONDS)
    is_whole = page.witness.end == "clean" and page.witness.tokens == list(range(_NEXT_TOKENS))
    verdict.expect(is_whole, f"expected the next message to be answered: {page.witness}")
    await talk.rig.ledger.until_quiet(talk.user, QUIET_SECONDS)


def _turns_of(items: Sequence[StoredItem], verdict: Verdict) -> Iterator[Turn]:
    turn: Turn | None = None
    for item in items:
        if item.kind == "user_message":
            if turn is not None:
                yield turn
            turn = Turn(item)
        elif item.kind == "assistant_message":
            verdict.expect(turn is not None, f"expected a user's message before {item.item_id}")
            if turn is not None:
                turn.answers.append(item)
        else:
            verdict.expect(item.is_hidden, f"expected no {item.kind} on the thread")
    if turn is not None:
        yield turn


def _judge_thread(talk: Conversation, turns: list[Turn], runs: list[StoredRun], verdict: Verdict) -> None:
    by_id = {run.run_id: run for run in runs}
    answered = [turn.message.run_id for turn in turns]
    verdict.expect(len(set(answered)) == len(answered), f"expected one message for each run, got {answered}")
    order = [run.run_id for run in runs if run.run_id in answered]
    verdict.expect(order == answered, f"expected the messages of {order}, got those of {answered}")
    for turn in turns:
        _judge_turn(talk, turn, by_id.get(turn.message.run_id or ""), verdict)
    for run in runs:
        # One that was killed before it had stored the message has shown it to nobody.
        witnesses = [witness for witness in talk.witnesses if witness.run_id == run.run_id]
        if run.run_id not in answered:
            verdict.expect(not witnesses, f"expected the user's message of {run}: {[*map(str, witnesses)]}")


def _judge_turn(talk: Conversation, turn: Turn, run: StoredRun | None, verdict: Verdict) -> None:
    if run is None:
        verdict.problems.append(f"expected a run that answers {turn.message}")
        return
    kept = turn.kept
    where = turn.described(run)
    verdict.expect(len(turn.answers) <= 1, f"expected one answer at most: {where}: {len(turn.answers)}")
    verdict.expect({a.run_id for a in turn.answers} <= {run.run_id}, f"expected the answer to be of {where}")
    verdict.expect(TOKEN.sub("", turn.text) == "", f"expected nothing but tokens: {where}")
    verdict.doubled += len(kept) - len(set(kept))
    verdict.expect(kept == list(range(len(kept))), f"expected t0, t1, …: {where}: {_around_the_break(kept)}")
    if run.state == "completed" and turn.asked:
        verdict.expect(len(kept) == turn.asked, f"expected all tokens: {where}")
    for witness in talk.witnesses:
        if witness.run_id == run.run_id:
            _judge_witness(talk, witness, turn, run, verdict)


def _judge_witness(talk: Conversation, witness: Witness, turn: Turn, run: StoredRun, verdict: Verdict) -> None:
    seen, kept, where = witness.tokens, turn.kept, turn.described(run)
    verdict.tokens += len(seen)
    verdict.doubled += len(seen) - len(set(seen))
    due = list(range(witness.expects, witness.expects + len(seen)))
    verdict.expect(seen == due, f"{witness} saw {_around_the_break(seen)}: {where}")
    _count_missing(talk, witness, set(kept), where, verdict)
    if witness.end == "clean":
        # Who came back with the run's last event has nothing left to see.
        came_last = not seen and not witness.texts and witness.last_sequence == run.last_sequence
        got_all = came_last or witness.next_token == len(kept) or turn.text in witness.texts
        verdict.expect(got_all, f"expected all that is kept before a clean end: {witness}: {where}")
    verdict.expect(
        all(text == turn.text for text in witness.texts), f"{witness} was shown another text as done: {where}"
    )


def _count_missing(talk: Conversation, witness: Witness, kept: set[int], where: str, verdict: Verdict) -> None:
    forgiven = talk.forgiven.get(witness.run_id, [])
    missing = [(number, at) for number, at in zip(witness.tokens, witness.times, strict=True) if number not in kept]
    lost = [(number, at) for number, at in missing if not any(since <= at <= until for since, until in forgiven)]
    verdict.late += len(missing) - len(lost)
    verdict.lost += len(lost)
    if lost:
        number, at = lost[0]
        ages = [f"{at - since - talk.rig.forgives:+.3f} s" for since, _ in forgiven]
        when = f" ({' or '.join(ages)} from when its server was broken)" if ages else ""
        verdict.problems.append(f"lost: {witness} saw {len(lost)} tokens from t{number} on{when}: {where}")


def _around_the_break(numbers: Sequence[int]) -> str:
    """Where a sequence of numbers stops counting up."""
    for place in range(1, len(numbers)):
        if numbers[place] != numbers[place - 1] + 1:
            return f"… {' '.join(f't{n}' for n in numbers[max(0, place - 2) : place + 3])} …"
    return f"t{numbers[0]} … t{numbers[-1]}" if numbers else "nothing"
