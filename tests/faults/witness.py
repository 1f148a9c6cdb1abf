"""What one watcher saw of one run: each token with when it came, and how the stream ended."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.faults.violation import ViolationError

TOKEN = re.compile(r"t(\d+)x* ")

End = Literal["", "clean", "error", "refused", "broken", "left"]
"""Not yet; as it should; with an `error` event; with a status and nothing before; in the middle; by the watcher."""


@dataclass
class Witness:
    """Filled by whoever reads the stream.

    expects: the number of the first token that it should see.
    tokens: the numbers of those it saw, and times (of time.monotonic()) when.
    texts: of the assistant's messages that were said to be done.
    oddities: what no stream may do. jumps: from where to where the numbers of its events didn't count up.
    state: how the run ended, where the stream says so.
    """

    name: str
    expects: int = 0
    run_id: str = ""
    thread_id: str = ""
    pid: int = 0
    last_sequence: int | None = None
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)
    jumps: list[tuple[int, int]] = field(default_factory=list)
    state: str = ""
    error: str = ""
    allows_retry: bool = False
    end: End = ""
    detail: str = ""
    ended_at: float = 0.0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def next_token(self) -> int:
        """The number of the token that should come next."""
        return self.tokens[-1] + 1 if self.tokens else self.expects

    @property
    def event_id(self) -> str:
        """The last event it has, as a client says it when it comes back."""
        return f"{self.run_id}:{self.last_sequence or 0}"

    def saw(self, event: dict[str, Any], run_id: str, number: int | None) -> None:
        """Take note of an event."""
        self._note_number(run_id, number)
        kind = event["type"]
        if kind == "thread.item.updated":
            self._saw_tokens(event["update"].get("delta", ""))
        elif kind == "thread.item.done" and event["item"]["type"] == "assistant_message":
            self.texts.append("".join(part["text"] for part in event["item"]["content"]))
        elif kind == "thread.created":
            self.thread_id = event["thread"]["id"]
        elif kind == "progress_update" and event["text"].startswith("pid "):
            self.pid = int(event["text"][4:])
        elif kind == "notice":
            self.notices.append(event["message"])
        elif kind == "error":
            self.error, self.allows_retry = event.get("message", event["code"]), event.get("allow_retry", False)
        self._news.set()

    def ended(self, how: End, detail: str = "") -> None:
        """Take note of the end of the stream; only the first counts."""
        if self.end:
            return
        self.end = "error" if how == "clean" and self.error else how
        self.detail = detail
        self.ended_at = time.monotonic()
        self._news.set()

    async def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for something that it should see. Raises ViolationError, with `what`, where it doesn't."""
        deadline = time.monotonic() + seconds
        while not condition():
            self._news.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._news.wait()
            except TimeoutError:
                raise ViolationError(f"{self}: expected {what} within {seconds:g} s") from None

    async def has_tokens(self, count: int, seconds: float = 15.0) -> None:
        """Wait for a number of tokens. Raises ViolationError where the stream ends before."""
        await self.until(lambda: len(self.tokens) >= count or self.end != "", seconds, f"{count} tokens")
        if len(self.tokens) < count:
            raise ViolationError(f"{self}: expected {count} tokens")

    async def has_run(self, seconds: float = 15.0) -> str:
        """Wait until it knows the run's id."""
        await self.until(lambda: self.run_id != "" or self.end != "", seconds, "a first event")
        if not self.run_id:
            raise ViolationError(f"{self}: expected a first event")
        return self.run_id

    async def has_ended(self, seconds: float) -> None:
        """Wait for the end of the stream."""
        await self.until(lambda: self.end != "", seconds, "an end")

    def __str__(self) -> str:
        """Enough to find out what happened."""
        seen = f"{len(self.tokens)} tokens up to t{self.next_token - 1}" if self.tokens else "no tokens"
        end = f"ended {self.end} {self.state}" if self.end else "not ended"
        why = json.dumps(self.error or self.detail)
        return f"{self.name} of {self.run_id or 'no run'} ({seen}, event {self.last_sequence}, {end} {why})"

    def _saw_tokens(self, delta: str) -> None:
        now = time.monotonic()
        for match in TOKEN.finditer(delta):
            self.tokens.append(int(match[1]))
            self.times.append(now)

    def _note_number(self, run_id: str, number: int | None) -> None:
        if number is None:
            return  # an error that the bridge says has none
        if self.run_id not in {"", run_id}:
            self.oddities.append(f"{self.name} was shown {run_id} after {self.run_id}")
            self.last_sequence = None
        if self.last_sequence is not None and number != self.last_sequence + 1:
            self.jumps.append((self.last_sequence, number))
        self.run_id, self.last_sequence = run_id, number
