"""New ids: a prefix that tells the kind, and 128 bits that sort by the time they were made."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Literal

Kind = Literal[
    "thread", "message", "tool_call", "task", "workflow", "attachment", "sdk_hidden_context", "run", "server"
]  # the SDK's, "run" and "server"

_PREFIXES: Mapping[Kind, str] = {
    "thread": "thr",
    "message": "msg",
    "tool_call": "tc",
    "task": "tsk",
    "workflow": "wf",
    "attachment": "atc",
    "sdk_hidden_context": "shcx",
    "run": "run",
    "server": "srv",
}


def new_id(kind: Kind) -> str:
    """An id that nobody else has. Sample: "thr_019ab0c7f5e27b3c9d1e4f5a6b7c8d9e"."""
    return f"{_PREFIXES[kind]}_{_uuid7():032x}"


def _uuid7() -> int:
    """A UUID version 7 (RFC 9562): milliseconds, then the fraction of one in 12 bits, then 62 random bits."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = nanoseconds * 4096 // 1_000_000
    return milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
