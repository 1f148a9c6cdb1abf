"""What somebody types as what PostgreSQL looks for, and as what is marked in what it finds.

Words must all be there; "words in quotes" must stand side by side, and so must parts-of-a-word; OR between two of them
lets either do; what a minus stands before must not be there. The last word may go on, unless something follows it, so
that results come while one types. Nothing that can be typed is a mistake, but for what names no word to look for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from chatkit_grpc.errors import ValidationError

from server.search.words import LONGEST_WORD, SEPARATORS, UNSPACED, Word, words

LONGEST_QUERY = 500
MOST_WORDS = 32

_PATH = "$.params.query"
_TERM = re.compile(r'(?P<minus>-?)(?:"(?P<quoted>[^"]*)"?|(?P<bare>[^\s"]+))')
_SEPARATED = re.compile(rf"[{SEPARATORS}]\Z")
_BEGIN = rf"(?<![^{SEPARATORS}{UNSPACED}])"
_END = rf"(?![^{SEPARATORS}{UNSPACED}])"


@dataclass(frozen=True, slots=True)
class Term:
    """Words that must stand side by side, or must not.

    goes_on: whether the last one is merely how a word begins.
    """

    words: tuple[Word, ...]
    is_excluded: bool = False
    goes_on: bool = False

    def lookup(self, mark: str) -> str:
        """The term in PostgreSQL's words. Sample: "'6384e2b2hello' <-> '6384e2b2wor':*"."""
        text, at = "", 0
        for place, lexeme, goes_on in self._lexemes():
            text += f" <{place - at}> " if text else ""
            text += f"'{mark}{lexeme}'{':*' if goes_on else ''}"
            at = place
        return f"!({text})" if self.is_excluded else f"({text})"

    def _lexemes(self) -> Iterator[tuple[int, str, bool]]:
        """Its place, the lexeme, and whether that may go on."""
        last = len(self.words) - 1
        for place, word in enumerate(self.words):
            if not word.is_character:
                yield place, word.text, self.goes_on and place == last
            elif place < last and self.words[place + 1].is_character:
                yield place, word.text + self.words[place + 1].text, False
            elif place == 0 or not self.words[place - 1].is_character:
                # Alone: in the index it stands together with whatever follows it.
                yield place, word.text, True

    def pattern(self) -> str:
        """A regular expression for the term in a folded text."""
        pattern, last = "", len(self.words) - 1
        for place, word in enumerate(self.words):
            pattern += f"[{SEPARATORS}]*" if place else ""
            if word.is_character:
                pattern += re.escape(word.text)
            else:
                is_cut = len(word.text) == LONGEST_WORD or (self.goes_on and place == last)
                pattern += _BEGIN + re.escape(word.text) + ("" if is_cut else _END)
        return pattern


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for: in each of the alternatives all terms count."""

    alternatives: tuple[tuple[Term, ...], ...]

    def lookup(self, user_id: str) -> str:
        """A tsquery for the user's part of the index."""
        mark = hashlib.md5(user_id.encode(), usedforsecurity=False).hexdigest()[:8]
        return " | ".join(" & ".join(term.lookup(mark) for term in terms) for terms in self.alternatives)

    def matches(self) -> re.Pattern[str]:
        """What to mark in a folded text that was found."""
        terms = [term for terms in self.alternatives for term in terms if not term.is_excluded]
        # The longest first: of two that begin at the same place the first one counts.
        return re.compile("|".join(sorted({term.pattern() for term in terms}, key=lambda p: (-len(p), p))))


def parse(text: str) -> Query:
    """Read a query. Raises ValidationError for one that is too long, or names no word to look for."""
    if len(text) > LONGEST_QUERY:
        raise ValidationError.at(_PATH, f"expected at most {LONGEST_QUERY} characters, got {len(text):,}")
    alternatives = tuple(tuple(terms) for terms in _alternatives(text))
    count = sum(len(term.words) for terms in alternatives for term in terms)
    if count > MOST_WORDS:
        raise ValidationError.at(_PATH, f"expected at most {MOST_WORDS} words, got {count}")
    if not alternatives or any(all(term.is_excluded for term in terms) for terms in alternatives):
        raise ValidationError.at(_PATH, "expected a word to look for")
    return Query(alternatives)


def _alternatives(text: str) -> list[list[Term]]:
    found: list[list[Term]] = [[]]
    is_or = False
    for match in _TERM.finditer(text):
        if _is_or(match, text) and found[-1] and not is_or:
            is_or = True
        elif term := _term(match, text):
            if is_or:
                found.append([])
            found[-1].append(term)
            is_or = False
    return [terms for terms in found if terms]


def _is_or(match: re.Match[str], text: str) -> bool:
    """Whether it is an OR and not a word: something follows."""
    return (match["bare"] or "").lower() == "or" and not match["minus"] and bool(text[match.end() :].strip())


def _term(match: re.Match[str], text: str) -> Term | None:
    is_quoted = match["quoted"] is not None
    found = tuple(words(match["quoted"] if is_quoted else match["bare"]))
    if not found:
        return None
    is_excluded = bool(match["minus"])
    at_end = match.end() == len(text) and not _SEPARATED.search(text)
    return Term(found, is_excluded, goes_on=at_end and not is_quoted and not is_excluded)
