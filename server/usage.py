"""What an answer takes of models, counted for its user and for whoever asks."""

from __future__ import annotations

from agents import Usage

from server.context import RequestContext


def count_run(context: RequestContext, usage: Usage, *, estimated_input: int = 0, estimated_output: int = 0) -> None:
    """Add what an agent's run took to what its request has taken.

    estimated_input, estimated_output: tokens that the model didn't tell of.
    """
    total = context.usage
    total.requests += usage.requests or bool(estimated_input)
    total.input_tokens += usage.input_tokens + estimated_input
    total.cached_input_tokens += usage.input_tokens_details.cached_tokens or 0
    total.output_tokens += usage.output_tokens + estimated_output
    total.reasoning_tokens += usage.output_tokens_details.reasoning_tokens or 0
    total.is_estimated = total.is_estimated or bool(estimated_input or estimated_output)
    context.tokens_used += usage.total_tokens + estimated_input + estimated_output
