"""The assistant that answers unless CHATKIT_SERVER names another: agents, models to choose from, a turn of theirs."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import openai
from agents import AgentsException, InputGuardrailTripwireTriggered, ModelSettings, RunConfig, Runner
from chatkit.actions import Action
from chatkit.agents import AgentContext
from chatkit.errors import CustomStreamError
from chatkit.server import ChatKitServer
from chatkit.store import Store
from chatkit.types import (
    AssistantMessageItem,
    FeedbackKind,
    InferenceOptions,
    ProgressUpdateEvent,
    SyncCustomActionResponse,
    ThreadItem,
    ThreadItemDoneEvent,
    ThreadItemReplacedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
    WidgetItem,
)
from chatkit_grpc.errors import ValidationError

from server.agent_record import AgentRecord
from server.agent_stream import stream_answer
from server.context import RequestContext
from server.hand_over import HandOvers
from server.history import HistoryConverter, load_model_input
from server.item_text import text_of
from server.left_behind import close_left_behind
from server.model_calls import Patience
from server.model_choice import choose_models
from server.model_failures import NO_ANSWER, ModelFailureError, failure_of
from server.models import OpenModel, OpenModels, open_models
from server.secret_guard import without_secrets
from server.settings import Settings
from server.showcase_actions import answer_action, answer_sync_action
from server.team import ChatAgent, Team, make_team
from server.titles import make_title

_AGENT = "agent"
"""Where a thread's metadata keep who answers on it."""
_NO_OPTIONS = InferenceOptions()

logger = logging.getLogger(__name__)


@runtime_checkable
class KeepsFeedback(Protocol):
    """A store that has a place for feedback; the SDK's Store has none."""

    async def save_feedback(
        self, thread_id: str, item_ids: list[str], kind: FeedbackKind, context: RequestContext
    ) -> None:
        """Keep what the user thinks of some items."""


@runtime_checkable
class SavesAgentRecord(Protocol):
    """A store that has a place for what an agent did after the last item."""

    async def save_agent_record(self, thread_id: str, record: AgentRecord, context: RequestContext) -> None:
        """Write what isn't written yet."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the assistant answers.

    asks_for_usage: whether the model's server is asked how many tokens it took where it doesn't say so by itself; not
        every server understands that.
    context_tokens: how much of a thread a model is told that doesn't say itself how much it takes.
    answer_seconds: how long an answer may take.
    titles: whether threads are given titles.
    """

    asks_for_usage: bool = False
    context_tokens: int = 32_000
    answer_seconds: float = 600.0
    titles: bool = False


@dataclass(frozen=True, slots=True)
class _Turn:
    """Who answers: the model, the agent, and the tool that it must use first, if any."""

    model: OpenModel
    agent: ChatAgent
    tool: str | None


def create_assistant(
    store: Store[RequestContext], settings: Settings | None = None, *, team: Team | None = None
) -> Assistant:
    """The assistant, with the models that the settings choose; without settings, with those of the environment.

    team: agents of one's own.
    """
    settings = settings or Settings.from_env()
    patience = Patience(
        settings.model_first_token_seconds, settings.model_token_seconds, retries=settings.model_retries
    )
    options = Options(
        asks_for_usage=settings.limits.tokens_per_day > 0,
        context_tokens=settings.context_tokens,
        answer_seconds=settings.answer_seconds,
        titles=settings.thread_titles,
    )
    return Assistant(store, open_models(choose_models(settings), patience), options, team)


class Assistant(ChatKitServer[RequestContext]):
    """Answers with agents of the Agents SDK, which are told what was said and done in the thread before.

    models: the models that answer. The assistant closes them.
    team: the agents that answer; without them, those of server/team.py.
    """

    def __init__(
        self,
        store: Store[RequestContext],
        models: OpenModels,
        options: Options | None = None,
        team: Team | None = None,
    ) -> None:
        super().__init__(store)
        self.models = models
        self._options = options or Options()
        self._converter = HistoryConverter()
        self._shows_off = team is None and any(model.choice.kind == "offline" for model in models)
        self._team = team or make_team(asks_for_usage=self._options.asks_for_usage, shows_off=self._shows_off)

    async def aclose(self) -> None:
        """Close the connections to the models."""
        await self.models.aclose()

    def check_options(self, options: InferenceOptions) -> None:
        """Refuse a message whose user has picked what isn't there. Raises ValidationError, which lists what is."""
        where = "$.params.input.inference_options"
        if self.models.find(options.model) is None:
            raise ValidationError.at(f"{where}.model", f"expected one of: {', '.join(self.models.ids)}")
        choice = options.tool_choice
        if choice is not None and choice.id not in self._team.choices:
            raise ValidationError.at(f"{where}.tool_choice.id", f"expected one of: {', '.join(self._team.choices)}")

    async def respond(
        self,
        thread: ThreadMetadata,
        input_user_message: UserMessageItem | None,
        context: RequestContext,
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Stream the answer to what was said last. A failure of the model is raised as ModelFailureError."""
        turn = self._choose(thread, input_user_message)
        max_tokens = turn.model.choice.context_tokens or self._options.context_tokens
        items, told = await load_model_input(self.store, thread.id, context, self._converter, max_tokens)
        if input_user_message is None:
            turn = self._choose(thread, _last_message(items))
        else:
            for closed in close_left_behind(items):
                yield closed
        if turn.agent is not self._team.default:
            yield ProgressUpdateEvent(icon="agent", text=f"{turn.agent.name} is answering …")
        said: list[str] = []
        async with aclosing(self._answer(thread, turn, told, input_user_message, context)) as events:
            async for event in events:
                if isinstance(event, ThreadItemDoneEvent) and isinstance(event.item, AssistantMessageItem):
                    said.append(text_of(event.item))
                yield event
        if self._options.titles and thread.title is None and input_user_message is not None:
            thread.title = await make_title(turn.model, text_of(input_user_message), "\n".join(said), context)

    async def _answer(
        self,
        thread: ThreadMetadata,
        turn: _Turn,
        told: list[Any],
        message: UserMessageItem | None,
        context: RequestContext,
    ) -> AsyncGenerator[ThreadStreamEvent, None]:
        agent_context: AgentContext[Any] = AgentContext(thread=thread, store=self.store, request_context=context)
        record = AgentRecord.begin(context)
        context.usage.model = turn.model.choice.id
        result = Runner.run_streamed(
            turn.agent, told, context=agent_context, hooks=HandOvers(), run_config=_config(turn)
        )
        has_answered = False
        try:
            answer = stream_answer(agent_context, result, record=record, seconds=self._options.answer_seconds)
            async with aclosing(answer) as events:
                async for event in events:
                    has_answered = True
                    yield event
        except InputGuardrailTripwireTriggered as error:
            if message is not None and (clean := without_secrets(message)) != message:
                yield ThreadItemReplacedEvent(item=clean)
            raise failure_of(error) from None
        except (openai.OpenAIError, AgentsException) as error:
            if isinstance(error.__cause__, CustomStreamError):
                raise error.__cause__ from None  # a tool's own words for the user
            # Its text may quote the conversation: only its kind is logged.
            logger.warning("the answer failed: %s", type(error).__name__)
            raise failure_of(error) from error
        if not has_answered:
            raise ModelFailureError(NO_ANSWER)
        if isinstance(self.store, SavesAgentRecord):
            await self.store.save_agent_record(thread.id, record, context)
        if (agent_id := self._team.id_of(result.last_agent)) != self._team.id_of(turn.agent):
            thread.metadata[_AGENT] = agent_id

    def _choose(self, thread: ThreadMetadata, message: UserMessageItem | None) -> _Turn:
        """Who answers a message: whom it chooses, or else who answers on the thread since the last hand-over.

        Raises CustomStreamError for a model that isn't there any more.
        """
        options = message.inference_options if message else _NO_OPTIONS
        model = self.models.find(options.model)
        if model is None:
            raise CustomStreamError(
                f"The model of this message isn't there any more. There are: {', '.join(self.models.ids)}."
            )
        chosen = options.tool_choice.id if options.tool_choice else None
        if agent := self._team.find(chosen):
            return _Turn(model, agent, None)
        if chosen in self._team.choices:
            return _Turn(model, self._team.default, chosen)
        return _Turn(model, self._team.find(thread.metadata.get(_AGENT)) or self._team.default, None)

    async def add_feedback(
        self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: RequestContext
    ) -> None:
        """Keep the feedback in the store."""
        if not isinstance(self.store, KeepsFeedback):  # the SDK's Store has no place for it; ours has
            raise NotImplementedError(f"{type(self.store).__name__} has no save_feedback()")
        await self.store.save_feedback(thread_id, item_ids, feedback, context)

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: RequestContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Answer a click in a widget."""
        if not self._shows_off:
            raise NotImplementedError("without the showcase there is no widget that sends an action")
        async for event in answer_action(self.store, thread, action, sender, context):
            yield event

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: RequestContext
    ) -> SyncCustomActionResponse:
        """Answer a click in a widget by the widget alone."""
        if not self._shows_off:
            raise NotImplementedError("without the showcase there is no widget that sends an action")
        return await answer_sync_action(self.store, action, sender, context)


def _config(turn: _Turn) -> RunConfig:
    # Traces would go to OpenAI, whichever model answers.
    config = RunConfig(model=turn.model.model, tracing_disabled=True)
    return replace(config, model_settings=ModelSettings(tool_choice=turn.tool)) if turn.tool else config


def _last_message(items: Sequence[ThreadItem]) -> UserMessageItem | None:
    return next((item for item in reversed(items) if isinstance(item, UserMessageItem)), None)
