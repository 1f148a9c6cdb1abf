"""What came out of breaking something: tokens that were checked, and each thing that was not as it must be."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Verdict:
    """The outcome of one trial, or of many added up.

    tokens: how many a watcher received, all watchers together.
    late: of those, how many are not on the thread and may be missing: said in the last moment of a killed server.
    lost: how many are not on the thread and must be. doubled: how many are there, or came, more than once.
    recovery: seconds from the fault until nothing of it was left.
    """

    tokens: int = 0
    late: int = 0
    lost: int = 0
    doubled: int = 0
    recovery: float = 0.0
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, sentence: str) -> None:
        """Note that something doesn't hold."""
        if not holds:
            self.problems.append(sentence)

    def recovered_since(self, moment: float) -> float:
        """Note how long it took from a moment (of time.monotonic()) until now."""
        seconds = time.monotonic() - moment
        self.recovery = max(self.recovery, seconds)
        return seconds

    def add(self, other: Verdict) -> None:
        """Count another trial to this one."""
        self.tokens += other.tokens
        self.late += other.late
        self.lost += other.lost
        self.doubled += other.doubled
        self.recovery = max(self.recovery, other.recovery)
        self.problems += other.problems
