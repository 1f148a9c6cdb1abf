"""A guardrail: keys that somebody pastes by mistake reach neither the model, nor the thread, nor any log."""

from __future__ import annotations

import re
from typing import Any

from agents import Agent, GuardrailFunctionOutput, RunContextWrapper, TResponseInputItem, input_guardrail
from chatkit.agents import AgentContext
from chatkit.types import UserMessageItem

from server.context import RequestContext

WARNING = (
    "This message looks as if it held a secret key, so it was not sent to the model, and the key was taken out of it. "
    "Treat the key as known to others: revoke it."
)
_REMOVED = "[removed: it looked like a secret key]"
_TRIPPED = "_chatkit_grpc.secret_removed"
_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:sk|rk|pk)[-_](?:live|test|proj|svcacct|admin|ant|or)[-_][A-Za-z0-9_-]{16,}"
    r"|\bsk-[A-Za-z0-9]{32,}\b"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bAIza[A-Za-z0-9_-]{35}\b"
    r"|\b(?:ghp|gho|ghs|ghu|ghr|github_pat|glpat)[-_][A-Za-z0-9_-]{20,}"
    r"|\bwhsec_[A-Za-z0-9+/=]{20,}"
    r"|\bx(?:ox[abeprs]|app)-[A-Za-z0-9-]{20,}",
    re.DOTALL,
)
"""As OpenAI, Anthropic, Stripe, Amazon, Google, GitHub, GitLab and Slack write theirs, and PEM files."""


@input_guardrail(name="no_secrets", run_in_parallel=False)
def no_secrets(
    run: RunContextWrapper[AgentContext[RequestContext]], _agent: Agent[Any], _said: str | list[TResponseInputItem]
) -> GuardrailFunctionOutput:
    """Trips where a key was taken out of the message that is answered; before the model is called, not beside it."""
    return GuardrailFunctionOutput(WARNING, tripwire_triggered=_TRIPPED in run.context.request_context)


def without_secrets(message: UserMessageItem, context: RequestContext) -> UserMessageItem:
    """The message with each key in it replaced by a word of its removal: its text, what it quotes, its tags."""
    members = message.model_dump()
    clean = {name: _clean(members[name]) for name in ("content", "quoted_text")}
    if all(clean[name] == members[name] for name in clean):
        return message
    context[_TRIPPED] = True
    return UserMessageItem.model_validate(members | clean)


def _clean(value: Any) -> Any:
    match value:
        case str():
            return _SECRET.sub(_REMOVED, value)
        case list():
            return [_clean(element) for element in value]
        case dict():
            return {name: _clean(element) for name, element in value.items()}
        case _:
            return value
