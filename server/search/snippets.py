"""The passage of a text that shows the matches best: plain text, and where the matches are in it."""

from __future__ import annotations

import re
from typing import NamedTuple

from server.search.words import LONGEST_TEXT, fold_in_place

LENGTH = 200
"""How many characters of a text are shown."""
_LEAD = 40
"""How many of them stand before the first match."""
_TO_A_BLANK = 20
"""How far a cut is moved so as not to go through a word."""
_ELLIPSIS = "…"
_BLANKS = re.compile(r"\s")


class Match(NamedTuple):
    """A match in a text, in code points."""

    start: int
    length: int


class Snippet(NamedTuple):
    """A passage, and the matches in it, in their order and apart from each other."""

    text: str
    matches: list[Match]


def find_matches(text: str, pattern: re.Pattern[str]) -> list[Match]:
    """Where a pattern for folded texts matches a text."""
    folded = fold_in_place(text[:LONGEST_TEXT])
    found: list[Match] = []
    end = 0
    for match in pattern.finditer(folded.text):
        if match.start() == match.end():
            continue
        # Two folded characters may come from one.
        start = max(end, folded.starts[match.start()])
        end = max(end, folded.ends[match.end() - 1])
        if end > start:
            found.append(Match(start, end - start))
    return found


def snippet(text: str, pattern: re.Pattern[str]) -> Snippet:
    """The passage with the most matches, the first of several; where there is none, how the text begins."""
    matches = find_matches(text, pattern)
    start, end = _passage(text, matches)
    lead = _ELLIPSIS if start else ""
    shown = lead + _BLANKS.sub(" ", text[start:end]) + (_ELLIPSIS if end < len(text) else "")
    moved = [
        Match(match.start - start + len(lead), min(match.length, end - match.start))
        for match in matches
        if start <= match.start < end
    ]
    return Snippet(shown, moved)


def _passage(text: str, matches: list[Match]) -> tuple[int, int]:
    if len(text) <= LENGTH or not matches:
        return 0, _blank_before(text, LENGTH, 0)
    first = _best(matches)
    start = max(0, min(first.start - _LEAD, len(text) - LENGTH))
    start = _blank_after(text, start, first.start) if start else 0
    return start, _blank_before(text, start + LENGTH, min(first.start + first.length, start + LENGTH))


def _best(matches: list[Match]) -> Match:
    """The match from which on a passage holds the most."""
    best, most, last = matches[0], 0, 0
    for at, match in enumerate(matches):
        while last < len(matches) and matches[last].start + matches[last].length <= match.start + LENGTH - _LEAD:
            last += 1
        if last - at > most:
            best, most = match, last - at
    return best


def _blank_after(text: str, at: int, limit: int) -> int:
    """Where the first word begins at or after a place, if that isn't far."""
    found = _BLANKS.search(text, at - 1, min(limit, at + _TO_A_BLANK))
    return found.end() if found else at


def _blank_before(text: str, at: int, limit: int) -> int:
    """Where the last word ends at or before a place, if that isn't far."""
    if at >= len(text):
        return len(text)
    for place in range(at, max(limit, at - _TO_A_BLANK), -1):
        if text[place].isspace():
            return place
    return at
