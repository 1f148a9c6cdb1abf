"""Languages as browsers name them."""

from __future__ import annotations

import re

_TAG = re.compile(r"[a-zA-Z]{2,3}(-[a-zA-Z]{4})?(-([a-zA-Z]{2}|\d{3}))?")
"""A language, a script and a region (RFC 5646). What is longer may be words, and goes into no model's instructions."""


_QUALITY = re.compile(r"[01](\.\d{0,3})?")


def preferred_locale(accept_language: str) -> str | None:
    """The language that a header Accept-Language likes best. Sample: "en;q=0.8, de-AT" gives "de-AT"."""
    best: tuple[float, str] | None = None
    for entry in accept_language[:500].split(","):
        tag, _, parameters = entry.partition(";")
        quality = _quality(parameters)
        if _TAG.fullmatch(tag := tag.strip()) and quality > (best[0] if best else 0.0):
            best = (quality, tag)
    return best[1] if best else None


def _quality(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if not parameters.strip():
        return 1.0
    is_quality = name.strip() == "q" and _QUALITY.fullmatch(value.strip())
    return float(value) if is_quality else 0.0
