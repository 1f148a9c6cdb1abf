"""What came of all attempts, as one table."""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults.plan import Attempt
from tests.faults.verdict import Verdict

_HEAD = ("fault", "tried", "tokens", "lost", "late", "doubled", "slowest")


class Report:
    """Adds up verdicts by fault. failures: the attempts that violated something, with what."""

    def __init__(self) -> None:
        self.failures: list[tuple[Attempt, list[str]]] = []
        self._rows: dict[str, tuple[int, Verdict]] = {}

    def add(self, attempt: Attempt, verdict: Verdict) -> None:
        """Count an attempt."""
        tried, total = self._rows.get(attempt.fault, (0, Verdict()))
        total.add(verdict)
        self._rows[attempt.fault] = (tried + attempt.times, total)
        if verdict.problems:
            self.failures.append((attempt, verdict.problems))

    def table(self) -> str:
        """A row a fault and one for all. late: missing and allowed to, said just before a kill -9."""
        lines = [_HEAD, *self._lines()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
        return "\n".join(_aligned(line, widths) for line in lines)

    def _lines(self) -> Iterator[tuple[str, ...]]:
        everything, tried_in_all = Verdict(), 0
        for fault, (tried, total) in self._rows.items():
            yield _line(fault, tried, total)
            everything.add(total)
            tried_in_all += tried
        yield _line("all", tried_in_all, everything)


def _line(fault: str, tried: int, verdict: Verdict) -> tuple[str, ...]:
    counts = (tried, verdict.tokens, verdict.lost, verdict.late, verdict.doubled)
    return (fault, *(f"{count:,}" for count in counts), f"{verdict.recovery:.2f} s")


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    first, *others = line
    return "  ".join(
        [first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(others, widths[1:], strict=True))]
    )
