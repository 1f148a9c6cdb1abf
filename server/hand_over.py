"""Hand-overs from one agent to another, as a person sees them."""

from __future__ import annotations

from typing import Any

from agents import Agent, RunContextWrapper, RunHooks
from chatkit.agents import AgentContext
from chatkit.types import CustomTask


class HandOvers(RunHooks[AgentContext[Any]]):
    """Shows in the answer's workflow who hands over to whom."""

    async def on_handoff(
        self, context: RunContextWrapper[AgentContext[Any]], from_agent: Agent[Any], to_agent: Agent[Any]
    ) -> None:
        """One agent hands over to another."""
        task = CustomTask(title=f"{from_agent.name} → {to_agent.name}", icon="agent", status_indicator="complete")
        await context.context.add_workflow_task(task)
