"""Names of files as they are kept and shown: one line, that reads as it is written."""

from __future__ import annotations

import re
import unicodedata

from server.text_repair import whole

_MOST_CHARACTERS = 255
_ENDING = re.compile(r"\.\w{1,20}$")
_FOLDERS = re.compile(r"[/\\]")


def clean_name(name: str) -> str:
    """A name without control characters, without what turns the direction of writing, and without folders.

    One that is too long is cut before its ending. Sample: "report.pdf". Nothing left makes "file".
    """
    last = _FOLDERS.split(str(whole(name)))[-1]
    # Cc: control characters; Cf: invisible ones, of which some turn "exe.fdp" around; Zl, Zp: ends of lines.
    visible = "".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in last)
    shown = "".join(c for c in visible if unicodedata.category(c) != "Cf" or c == "\u200d").strip(" .")
    if len(shown) > _MOST_CHARACTERS:
        ending = found[0] if (found := _ENDING.search(shown)) else ""
        shown = shown[: _MOST_CHARACTERS - len(ending)] + ending
    return shown or "file"
