"""The assistant that answers unless CHATKIT_SERVER names another: agents, models to choose from, a turn of theirs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import openai
from agents import AgentsException, RunConfig, Runner
from chatkit.actions import Action
from chatkit.agents import AgentContext
from chatkit.errors import CustomStreamError
from chatkit.server import ChatKitServer
from chatkit.store import Store
from chatkit.types import (
    AssistantMessageItem,
    AudioInput,
    FeedbackKind,
    InferenceOptions,
    ProgressUpdateEvent,
    SDKHiddenContextItem,
    SyncCustomActionResponse,
    ThreadItemDoneEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    TranscriptionResult,
    UserMessageInput,
    UserMessageItem,
    WidgetItem,
)
from chatkit_grpc.errors import DatabaseError, ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server.agent_record import AgentRecord
from server.agent_stream import stream_answer
from server.attachments.for_the_model import contents_for
from server.attachments.settings import NO_ATTACHMENT_SETTINGS, AttachmentSettings
from server.context import RequestContext
from server.dictation import Dictation
from server.dictation_settings import HOW_TO_PLUG_IN_DICTATION, choose_transcriber
from server.history import HistoryConverter, last_message, load_model_input
from server.item_text import text_of
from server.left_behind import close_left_behind
from server.mcp_servers.for_the_assistant import mcp_servers_for
from server.mcp_servers.mcp_servers import McpServers
from server.model_calls import Patience
from server.model_choice import choose_models
from server.model_failures import NO_ANSWER, ModelFailureError, failure_of
from server.models import OpenModels, open_models
from server.secret_guard import without_secrets
from server.settings import Settings
from server.showcase_actions import answer_action, answer_sync_action
from server.team import Team, make_team
from server.titles import first_words, make_title
from server.tool_tasks import ToolTasks
from server.turns import PickedModel, Turn, Turns

logger = logging.getLogger(__name__)


@runtime_checkable
class KeepsFeedback(Protocol):
    """A store that has a place for feedback; the SDK's Store has none."""

    async def save_feedback(
        self, thread_id: str, item_ids: list[str], kind: FeedbackKind, context: RequestContext
    ) -> None:
        """Keep what the user thinks of some items."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the assistant answers.

    asks_for_usage: whether the model's server is asked how many tokens it took where it doesn't say so by itself; not
        every server understands that.
    context_tokens: how much of a thread a model is told that doesn't say itself how much it takes.
    answer_seconds: how long an answer may take.
    titles: whether threads are given titles.
    attachments: what a model is told of them. The store keeps them, if it has a place for them.
    """

    asks_for_usage: bool = False
    context_tokens: int = 32_000
    answer_seconds: float = 600.0
    titles: bool = False
    attachments: AttachmentSettings = NO_ATTACHMENT_SETTINGS


def create_assistant(
    store: Store[RequestContext],
    settings: Settings | None = None,
    *,
    team: Team | None = None,
    mcp_servers: McpServers | None = None,
) -> Assistant:
    """The assistant, with the models that the settings choose; without settings, with those of the environment.

    team: agents of one's own. mcp_servers: what those get tools from, where they do.
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
        attachments=settings.attachments,
    )
    transcriber = choose_transcriber(settings.dictation, settings.openai_api_key)
    if mcp_servers is None and team is None:
        mcp_servers = mcp_servers_for(store, settings)
    return Assistant(
        store,
        open_models(choose_models(settings), patience),
        options,
        team=team,
        dictation=Dictation(transcriber) if transcriber else None,
        mcp_servers=mcp_servers,
    )


class Assistant(ChatKitServer[RequestContext]):
    """Answers with agents of the Agents SDK, which are told what was said and done in the thread before.

    models: the models that answer. The assistant closes them.
    team: the agents that answer; without them, those of server/team.py.
    dictation: turns speech into text, where there is somebody who does. The assistant closes it.
    mcp_servers: what those get tools from, beside their own. The assistant opens and closes them.
    """

    def __init__(
        self,
        store: Store[RequestContext],
        models: OpenModels,
        options: Options | None = None,
        *,
        team: Team | None = None,
        dictation: Dictation | None = None,
        mcp_servers: McpServers | None = None,
    ) -> None:
        super().__init__(store, getattr(store, "attachments", None))
        self.models = models
        self.mcp_servers = mcp_servers or McpServers()
        self._options = options or Options()
        self._dictation = dictation
        # Its tools are for trying out: no real model is given them.
        self._shows_off = team is None and all(model.choice.kind == "offline" for model in models)
        team = team or make_team(
            asks_for_usage=self._options.asks_for_usage, shows_off=self._shows_off, mcp_servers=self.mcp_servers
        )
        self._turns = Turns(models, team)
        self._default_agent = team.default

    async def aopen(self) -> None:
        """Begin to connect the MCP servers."""
        await self.mcp_servers.aopen()

    async def aclose(self) -> None:
        """Close the connections to the models, to who transcribes, and to the MCP servers."""
        await self.mcp_servers.aclose()
        await self.models.aclose()
        if self._dictation is not None:
            await self._dictation.aclose()

    @property
    def takes_dictation(self) -> bool:
        """Whether it turns speech into text."""
        return self._dictation is not None

    async def transcribe(self, audio_input: AudioInput, context: RequestContext) -> TranscriptionResult:
        """Turn speech into text. Raises ValidationError where nobody does."""
        if self._dictation is None:
            raise ValidationError(HOW_TO_PLUG_IN_DICTATION, reason=reasons.ERROR_REASON_UNSUPPORTED)
        return await self._dictation.transcribe(audio_input, context)

    @property
    def passes_authorization(self) -> bool:
        """Whether an MCP server is called with users' own tokens."""
        return self.mcp_servers.passes_authorization

    def health_of_parts(self) -> dict[str, bool]:
        """Of each MCP server of the operator's whether its tools are there. Sample: {"mcp.files": True}."""
        return self.mcp_servers.health_of_parts()

    def check_options(self, options: InferenceOptions) -> None:
        """Refuse a message whose user has picked what isn't there. Raises ValidationError, which lists what is."""
        self._turns.check(options)

    async def _build_user_message_item(
        self,
        input: UserMessageInput,  # noqa: A002 # the SDK's name
        thread: ThreadMetadata,
        context: RequestContext,
    ) -> UserMessageItem:
        # Before it is stored, or logged, or shown to other pages.
        return without_secrets(await super()._build_user_message_item(input, thread, context), context)

    async def respond(
        self,
        thread: ThreadMetadata,
        input_user_message: UserMessageItem | None,
        context: RequestContext,
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Stream the answer to what was said last. A failure of the model is raised as ModelFailureError."""
        message = input_user_message or await last_message(self.store, thread.id, context)
        turn = self._turns.choose(thread, message, is_new=input_user_message is not None)
        max_tokens = turn.model.choice.context_tokens or self._options.context_tokens
        choice = turn.model.choice
        contents = contents_for(self.attachment_store, choice.kind, choice.name, self._options.attachments, context)
        converter = HistoryConverter(contents)
        recent, told = await load_model_input(self.store, thread.id, context, converter, max_tokens)
        for notice in contents.notices(input_user_message):
            yield notice
        if input_user_message is not None:
            for closed in close_left_behind(recent):
                yield closed
        if turn.agent.name != self._default_agent.name:
            yield ProgressUpdateEvent(icon="agent", text=f"{turn.agent.name} is answering …")
        said: list[str] = []
        async with aclosing(self._answer(thread, turn, told, context)) as events:
            async for event in events:
                if isinstance(event, ThreadItemDoneEvent) and isinstance(event.item, AssistantMessageItem):
                    said.append(text_of(event.item))
                yield event
        if self._options.titles and thread.title is None and input_user_message is not None:
            thread.title = await self._title(turn, text_of(input_user_message), "\n".join(said), context)

    async def _answer(
        self, thread: ThreadMetadata, turn: Turn, told: list[Any], context: RequestContext
    ) -> AsyncGenerator[ThreadStreamEvent, None]:
        agent_context: AgentContext[Any] = AgentContext(thread=thread, store=self.store, request_context=context)
        record = AgentRecord.begin(context)
        context.usage.model = turn.model.choice.id
        tool_tasks = ToolTasks(agent_context)
        # Traces would go to OpenAI, whichever model answers.
        config = RunConfig(model_provider=PickedModel(self.models, turn.model), tracing_disabled=True)
        result = Runner.run_streamed(turn.agent, told, context=agent_context, hooks=tool_tasks, run_config=config)
        failure: CustomStreamError | None = None
        has_answered, last_item = False, None
        try:
            answer = stream_answer(
                agent_context,
                result,
                record=record,
                seconds=self._options.answer_seconds,
                on_run_event=tool_tasks.take_run_event,
            )
            async with aclosing(tool_tasks.show(answer)) as events:
                async for event in events:
                    has_answered = True
                    if isinstance(event, ThreadItemDoneEvent):
                        last_item = event.item
                    yield event
        except (openai.OpenAIError, AgentsException, CustomStreamError) as error:
            failure = _told_failure(error)
        finally:
            # Where the answer is stopped, the core stores an item, and with it what was called.
            record.end()
        self._turns.remember(thread, turn, result.last_agent)
        if record.done():
            # Nothing came after these calls that they could be stored with: so it is the last item once more, or one of
            # its own.
            item = last_item if last_item is not None and failure is None else _bearer(agent_context, failure)
            with _kept_for_the_answers_sake():
                await self.store.add_thread_item(thread.id, item, context)
        if failure is not None:
            raise failure
        if not has_answered:
            raise ModelFailureError(NO_ANSWER)

    async def _title(self, turn: Turn, question: str, answer: str, context: RequestContext) -> str | None:
        try:
            return await make_title(turn.model, question, answer, context, asks_for_usage=self._options.asks_for_usage)
        except asyncio.CancelledError:
            # The answer is complete: whoever says the next thing hasn't stopped it, and the model must not be told so.
            # Nothing is left to do for the run but to end.
            return first_words(question)

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


def _told_failure(error: Exception) -> CustomStreamError:
    """What the user is told of what an answer failed with: a tool's own words where it has some."""
    if isinstance(error, CustomStreamError):
        return error
    if isinstance(error.__cause__, CustomStreamError):
        return error.__cause__
    # Its text may quote the conversation: only its kind is logged.
    logger.warning("the answer failed: %s", type(error).__name__)
    return failure_of(error)


@contextmanager
def _kept_for_the_answers_sake() -> Iterator[None]:
    """Let an answer that is said and stored stand, though what was called for it can't be stored."""
    try:
        yield
    except DatabaseError as error:
        logger.warning("the calls of an answer are lost: %s", error.code)


def _bearer(agent_context: AgentContext[Any], failure: CustomStreamError | None) -> SDKHiddenContextItem:
    """An item for the model's eyes, which carries what was called."""
    return SDKHiddenContextItem(
        id=agent_context.generate_id("sdk_hidden_context"),
        thread_id=agent_context.thread.id,
        created_at=datetime.now(),  # noqa: DTZ005 # as the SDK means it: naive and local
        content="" if failure is None else "The answer failed before it was complete.",
    )
