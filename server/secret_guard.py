"""A guardrail: keys and passwords that somebody pastes by mistake reach neither the model nor the thread."""

from __future__ import annotations

import re
from typing import Any

from agents import Agent, GuardrailFunctionOutput, RunContextWrapper, TResponseInputItem, input_guardrail
from chatkit.types import UserMessageItem, UserMessageTextContent

WARNING = (
    "This message looks as if it held a secret key, so it was not sent to the model, and the key was taken out of it. "
    "Treat the key as known to others: revoke it."
)
_REMOVED = "[removed: it looked like a secret key]"
_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:sk|rk|pk)[-_](?:live|test|proj|ant|or)[-_][A-Za-z0-9_-]{16,}"
    r"|\bsk-[A-Za-z0-9]{32,}\b"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\b(?:ghp|gho|ghs|ghu|github_pat)_[A-Za-z0-9_]{30,}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{20,}",
    re.DOTALL,
)
"""As OpenAI, Anthropic, Stripe, Amazon, GitHub and Slack write theirs, and PEM files."""


@input_guardrail(name="no_secrets", run_in_parallel=False)
def no_secrets(
    _run: RunContextWrapper[Any], _agent: Agent[Any], said: str | list[TResponseInputItem]
) -> GuardrailFunctionOutput:
    """Trips where the newest of what the user says holds a key; before the model is called, and not beside it."""
    return GuardrailFunctionOutput(WARNING, tripwire_triggered=bool(_SECRET.search(_newest(said))))


def without_secrets(message: UserMessageItem) -> UserMessageItem:
    """The message with each key in it replaced by a word of its removal."""
    content = [
        part.model_copy(update={"text": _SECRET.sub(_REMOVED, part.text)})
        if isinstance(part, UserMessageTextContent)
        else part
        for part in message.content
    ]
    return message.model_copy(update={"content": content})


def _newest(said: str | list[TResponseInputItem]) -> str:
    """What was said since the model spoke last."""
    if isinstance(said, str):
        return said
    texts: list[str] = []
    for item in reversed(said):
        if item.get("role") != "user":
            break
        texts.append(_text_of(item.get("content")))
    return "\n".join(texts)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content or ())
