"""The word for something that must hold and doesn't."""

from __future__ import annotations


class ViolationError(AssertionError):
    """What was expected, and what there was instead, as a sentence."""
