"""What a word is to search, in what is said and in what is looked for.

It is what the SQL function search_vector() makes of a text for the index (migrations/0005_search_and_feedback.sql).
Whoever changes it here changes it there, in a migration that builds the indexes anew.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

LONGEST_TEXT = 16_000
"""How many characters of a text are searched."""
LONGEST_WORD = 64
"""How many characters of a word count."""

# Classes of characters for a regular expression's brackets. What is in neither belongs to words.
SEPARATORS = (
    r"\x00-/:-@\[-`\{-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u02c2-\u02df\u0559-\u055f"
    r"\u0589\u058a\u05be\u05c0\u05c3\u05f3\u05f4\u060c\u061b-\u061f\u066a-\u066d\u06d4\u0964\u0965\u0e4f"
    r"\u0e5a\u0e5b\u104a-\u104f\u10fb\u1361-\u1368\u2000-\u206f\u20a0-\u20cf\u2190-\u25ff\u27c0-\u2bff"
    r"\u2e00-\u2e7f\u3000-\u3004\u3008-\u3020\u3030\u303d-\u303f\u30a0\u30fb\ufe00-\ufe0f\ufeff\ufff9-\uffff"
)
UNSPACED = (
    r"\u0e01-\u0e4e\u0e80-\u0eff\u1000-\u1049\u1780-\u17ff\u2600-\u27bf\u3005-\u3007\u3041-\u309f"
    r"\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    r"\U0001f000-\U0001faff\U00020000-\U0003ffff"
)
"""Scripts that set no blanks, Korean, and emoji: each character is a word of its own."""

_SIGMA = {0x03C2: 0x03C3}
"""Greek's S is another letter at the end of a word."""
_ACCENTS = re.compile(r"[\u0300-\u036f]+")
_WORD = re.compile(rf"([{UNSPACED}])|[^{SEPARATORS}{UNSPACED}]+")
# A character with what belongs to it: accents, marks of Japanese voicing, vowels and ends of Korean syllables.
_CLUSTER = re.compile(r".[\u0300-\u036f\u3099\u309a\u1160-\u11ff]*", re.DOTALL)


class Word(NamedTuple):
    """A word, folded.

    is_character: whether it is one of the characters that are a word by themselves.
    """

    text: str
    is_character: bool


class Folded(NamedTuple):
    """A folded text, and for each of its characters where the one that it comes from begins and ends."""

    text: str
    starts: list[int] | range
    ends: list[int] | range


def words(text: str) -> list[Word]:
    """The words of a text in their order."""
    return [Word(found[0][:LONGEST_WORD], found[1] is not None) for found in _WORD.finditer(fold(text))]


def fold(text: str) -> str:
    """A text without case and accents, its characters in their usual forms."""
    if text.isascii():
        return text.lower()
    decomposed = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFC", decomposed.lower().translate(_SIGMA))


def fold_in_place(text: str) -> Folded:
    """A folded text that can still be found in the one that it was."""
    if text.isascii():
        return Folded(text.lower(), range(len(text)), range(1, len(text) + 1))
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for cluster in _CLUSTER.finditer(text):
        folded = _fold_cluster(cluster[0])
        parts.append(folded)
        starts += [cluster.start()] * len(folded)
        ends += [cluster.end()] * len(folded)
    return Folded("".join(parts), starts, ends)


_fold_cluster = lru_cache(maxsize=10_000)(fold)
