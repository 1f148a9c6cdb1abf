"""The assistant that answers unless CHATKIT_SERVER names another: one agent with two small tools."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, tzinfo
from typing import Any, Protocol, runtime_checkable
from zoneinfo import ZoneInfo

import openai
from agents import Agent, AgentsException, ModelSettings, RunConfig, Runner, RunResultStreaming, function_tool
from chatkit.agents import AgentContext
from chatkit.errors import CustomStreamError
from chatkit.server import ChatKitServer
from chatkit.store import Store
from chatkit.types import FeedbackKind, ThreadMetadata, ThreadStreamEvent, UserMessageItem

from server.agent_stream import stream_answer
from server.attachments.for_the_model import contents_for
from server.attachments.settings import NO_ATTACHMENT_SETTINGS, AttachmentSettings
from server.context import RequestContext
from server.history import HistoryConverter, load_history
from server.model_choice import choose_model
from server.models import OpenModel, open_model, readable_failure
from server.offline_model import SUM_TOOL, TIME_TOOL
from server.settings import Settings

logger = logging.getLogger(__name__)

INSTRUCTIONS = (
    "You are a helpful assistant. Answer in the language of the user, clearly and without padding. "
    "Use your tools for the current time and for sums instead of guessing."
)


@runtime_checkable
class KeepsFeedback(Protocol):
    """A store that has a place for feedback; the SDK's Store has none."""

    async def save_feedback(
        self, thread_id: str, item_ids: list[str], kind: FeedbackKind, context: RequestContext
    ) -> None:
        """Keep what the user thinks of some items."""


def create_assistant(store: Store[RequestContext], settings: Settings | None = None) -> Assistant:
    """The assistant, with the model that the settings choose; without settings, with those of the environment."""
    settings = settings or Settings.from_env()
    return Assistant(
        store,
        open_model(choose_model(settings)),
        asks_for_usage=settings.limits.tokens_per_day > 0,
        attachments=settings.attachments,
    )


class Assistant(ChatKitServer[RequestContext]):
    """Answers with an agent of the Agents SDK, which is told what was said in the thread before.

    model: the model that answers. The assistant closes it.
    asks_for_usage: whether the model's server is asked how many tokens it took where it doesn't say so by itself; not
        every server understands that.
    attachments: what the model is told of them. The store keeps them, if it has a place for them.
    """

    def __init__(
        self,
        store: Store[RequestContext],
        model: OpenModel,
        *,
        asks_for_usage: bool = False,
        attachments: AttachmentSettings = NO_ATTACHMENT_SETTINGS,
    ) -> None:
        super().__init__(store, getattr(store, "attachments", None))
        self.model = model
        self._attachment_settings = attachments
        self._agent = Agent[AgentContext[RequestContext]](
            name="Assistant",
            instructions=INSTRUCTIONS,
            model=model.model,
            model_settings=ModelSettings(include_usage=True) if asks_for_usage else ModelSettings(),
            tools=[current_time, add_numbers],
        )

    async def aclose(self) -> None:
        """Close the connections to the model."""
        await self.model.aclose()

    async def respond(
        self,
        thread: ThreadMetadata,
        input_user_message: UserMessageItem | None,
        context: RequestContext,
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Stream the answer to what was said last. A failure of the model is raised as CustomStreamError."""
        agent_context: AgentContext[Any] = AgentContext(thread=thread, store=self.store, request_context=context)
        history = await load_history(self.store, thread.id, context)
        contents = contents_for(
            self.attachment_store, self.model.choice.kind, self.model.choice.name, self._attachment_settings, context
        )
        await contents.load(history)
        for notice in contents.notices(input_user_message):
            yield notice
        model_input = await HistoryConverter(contents).to_agent_input(history)
        answered = False
        try:
            async with aclosing(stream_answer(agent_context, self._run(model_input, agent_context))) as events:
                async for event in events:
                    answered = True
                    yield event
        except (openai.OpenAIError, AgentsException) as error:
            # Its text may quote the conversation: only its kind is logged.
            logger.warning("The model call failed: %s", type(error).__name__)
            raise readable_failure(error) from error
        if not answered:
            # A Chat Completions stream without content is no error to the SDK, but nothing to a person.
            logger.warning("The model gave no answer")
            raise CustomStreamError("The model gave no answer. Please try again.", allow_retry=True)

    def _run(self, model_input: list[Any], agent_context: AgentContext[Any]) -> RunResultStreaming:
        # Traces would go to OpenAI, whichever model answers.
        return Runner.run_streamed(
            self._agent, model_input, context=agent_context, run_config=RunConfig(tracing_disabled=True)
        )

    async def add_feedback(
        self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: RequestContext
    ) -> None:
        """Keep the feedback in the store."""
        if not isinstance(self.store, KeepsFeedback):  # the SDK's Store has no place for it; ours has
            raise NotImplementedError(f"{type(self.store).__name__} has no save_feedback()")
        await self.store.save_feedback(thread_id, item_ids, feedback, context)


@function_tool(name_override=TIME_TOOL)
def current_time(timezone: str = "UTC") -> str:
    """The current date and time.

    Args:
        timezone: A name of the IANA time zone database, such as Europe/Berlin.
    """
    zone: tzinfo
    try:
        # UTC needs no database, which slim systems don't have.
        zone = UTC if timezone.upper() == "UTC" else ZoneInfo(timezone)
    except (LookupError, ValueError, OSError):
        return f"unknown: there is no time zone {timezone!r}"
    return f"{datetime.now(zone):%A, %Y-%m-%d %H:%M:%S} {timezone}"


@function_tool(name_override=SUM_TOOL)
def add_numbers(numbers: list[float]) -> str:
    """The sum of numbers.

    Args:
        numbers: The numbers to add.
    """
    return format(math.fsum(numbers), ".15g")
