"""A ChatKitServer that does what the user's message tells it to, and says every kind of thing that ChatKit knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from typing import Any

from chatkit.actions import Action
from chatkit.errors import CustomStreamError
from chatkit.server import ChatKitServer
from chatkit.store import AttachmentStore, Store
from chatkit.types import (
    ActiveStatus,
    Annotation,
    AssistantMessageContent,
    AssistantMessageContentPartAdded,
    AssistantMessageContentPartAnnotationAdded,
    AssistantMessageContentPartDone,
    AssistantMessageContentPartTextDelta,
    AssistantMessageItem,
    Attachment,
    AttachmentCreateParams,
    AttachmentUploadDescriptor,
    AudioInput,
    ClientEffectEvent,
    ClientToolCallItem,
    CustomSummary,
    CustomTask,
    DurationSummary,
    EndOfTurnItem,
    EntitySource,
    ErrorEvent,
    FeedbackKind,
    FileAttachment,
    FileSource,
    FileTask,
    GeneratedImage,
    GeneratedImageItem,
    GeneratedImageUpdated,
    HiddenContextItem,
    ImageTask,
    LockedStatus,
    NoticeEvent,
    ProgressUpdateEvent,
    SearchTask,
    StructuredInputFreeform,
    StructuredInputItem,
    StructuredInputMultipleChoice,
    StructuredInputMultipleChoiceOption,
    SyncCustomActionResponse,
    Task,
    TaskItem,
    ThoughtTask,
    ThreadItem,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemRemovedEvent,
    ThreadItemReplacedEvent,
    ThreadItemUpdate,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    TranscriptionResult,
    URLSource,
    UserMessageItem,
    UserMessageTextContent,
    WidgetComponentUpdated,
    WidgetItem,
    WidgetRootUpdated,
    WidgetStreamingTextValueDelta,
    Workflow,
    WorkflowItem,
    WorkflowTaskAdded,
    WorkflowTaskUpdated,
)
from chatkit.widgets import DynamicWidgetRoot
from pydantic import AnyUrl

from server.context import RequestContext

Context = Any
WHAT_WAS_SAID = "secret text of a conversation"
FREE_JSON = {"z": 1, "a": [2**70, 1e5, 1.0, -0.5, None, {}, [], {"deep": [[[["x"]]]]}], "emoji": "👩‍👩‍👧", "null": None}


def widget_root(text: str) -> DynamicWidgetRoot:
    return DynamicWidgetRoot.model_validate(
        {"type": "Card", "children": [{"type": "Markdown", "id": "md", "value": text}], "size": "sm", "unheard_of": 1}
    )


class ScriptedAttachments(AttachmentStore[Context]):
    """Attachments of which nobody keeps the bytes."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def create_attachment(self, input: AttachmentCreateParams, context: Context) -> Attachment:  # noqa: A002 # the SDK's name
        upload = AttachmentUploadDescriptor(url=AnyUrl("https://upload.test/x"), method="PUT", headers={"a": "b"})
        return FileAttachment(
            id=f"atc_{input.name}",
            name=input.name,
            mime_type=input.mime_type,
            upload_descriptor=upload,
            metadata={"size": input.size},
        )

    async def delete_attachment(self, attachment_id: str, context: Context) -> None:
        self.deleted.append(attachment_id)


class ScriptedServer(ChatKitServer[Context]):
    """Answers by the first word of the user's text; see `respond`."""

    def __init__(self, store: Store[Context]) -> None:
        super().__init__(store, ScriptedAttachments())
        self.feedback: list[tuple[str, list[str], str]] = []
        self.contexts: list[RequestContext] = []
        self.may_go_on = asyncio.Event()
        self.is_silent = asyncio.Event()
        self.steps = asyncio.Semaphore(0)

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: Context
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Call say_COMMAND for the text "COMMAND ARGUMENTS"; what each does is below."""
        self.contexts.append(context)
        command, *arguments = (_text_of(input_user_message) or "tokens 3").split()
        script = getattr(self, f"say_{command}", None)
        if script is None:
            raise AssertionError(f"no such script: {command}")
        async for event in script(thread, context, *arguments):
            yield event

    async def say_tokens(
        self, thread: ThreadMetadata, context: Context, count: str = "3", seconds: str = "0"
    ) -> AsyncIterator[ThreadStreamEvent]:
        """One message of numbered tokens."""
        item = self._message(thread, context)
        yield ThreadItemAddedEvent(item=item)
        yield _updated(item, AssistantMessageContentPartAdded(content_index=0, content=_content("")))
        for number in range(int(count)):
            if float(seconds):
                await asyncio.sleep(float(seconds))
            yield _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta=f"t{number} "))
        text = "".join(f"t{number} " for number in range(int(count)))
        yield ThreadItemDoneEvent(item=item.model_copy(update={"content": [_content(text)]}))

    async def say_wait(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """Two tokens, then nothing until `may_go_on` is set, then a third."""
        item = self._message(thread, context)
        yield ThreadItemAddedEvent(item=item)
        for delta in ("one ", "two "):
            yield _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta=delta))
        self.is_silent.set()
        await self.may_go_on.wait()
        yield _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta="three"))
        yield ThreadItemDoneEvent(item=item.model_copy(update={"content": [_content("one two three")]}))

    async def say_between(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """A whole message, then nothing until `may_go_on` is set, then another one."""
        yield ThreadItemDoneEvent(item=self._message(thread, context, "first"))
        self.is_silent.set()
        await self.may_go_on.wait()
        yield ThreadItemDoneEvent(item=self._message(thread, context, "second"))

    async def say_silence(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """Nothing at all until `may_go_on` is set."""
        self.is_silent.set()
        await self.may_go_on.wait()
        yield ThreadItemDoneEvent(item=self._message(thread, context, "at last"))

    async def say_stubborn(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """No end, whoever cancels."""
        yield ProgressUpdateEvent(text="not me")
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)

    async def say_deaf(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """Two tokens, then no end, whoever cancels, until `may_go_on` is set."""
        item = self._message(thread, context)
        yield ThreadItemAddedEvent(item=item)
        for delta in ("one ", "two "):
            yield _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta=delta))
        self.is_silent.set()
        while not self.may_go_on.is_set():
            with suppress(asyncio.CancelledError):
                await self.may_go_on.wait()

    async def say_steps(
        self, thread: ThreadMetadata, context: Context, count: str = "3"
    ) -> AsyncIterator[ThreadStreamEvent]:
        """One message of numbered tokens, one for each release of `steps`."""
        item = self._message(thread, context)
        yield ThreadItemAddedEvent(item=item)
        self.is_silent.set()
        for number in range(int(count)):
            await self.steps.acquire()
            yield _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta=f"t{number} "))
        text = "".join(f"t{number} " for number in range(int(count)))
        yield ThreadItemDoneEvent(item=item.model_copy(update={"content": [_content(text)]}))

    async def say_large(
        self, thread: ThreadMetadata, context: Context, count: str = "200", size: str = "10000"
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Large numbered tokens as fast as they go, then nothing until `may_go_on` is set."""
        item = self._message(thread, context)
        yield ThreadItemAddedEvent(item=item)
        for number in range(int(count)):
            delta = f"t{number} ".ljust(int(size), ".")
            yield _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta=delta))
            await asyncio.sleep(0)
        self.is_silent.set()
        await self.may_go_on.wait()
        yield ThreadItemDoneEvent(item=item.model_copy(update={"content": [_content("large")]}))

    async def say_effects(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """An effect, two tokens, nothing until `may_go_on` is set, then another effect and a third token."""
        item = self._message(thread, context)
        yield ClientEffectEvent(name="early", data={})
        yield ThreadItemAddedEvent(item=item)
        for delta in ("one ", "two "):
            yield _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta=delta))
        self.is_silent.set()
        await self.may_go_on.wait()
        yield ClientEffectEvent(name="late", data={})
        yield _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta="three"))
        yield ThreadItemDoneEvent(item=item.model_copy(update={"content": [_content("one two three")]}))

    async def say_deep(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """An effect that is nested too deeply for any message, then a message."""
        data: dict[str, Any] = {}
        for _ in range(150):
            data = {"d": data}
        yield ClientEffectEvent(name="deep", data=data)
        yield ThreadItemDoneEvent(item=self._message(thread, context, "after"))

    async def say_fail(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """An item begun, then a bug."""
        item = self._message(thread, context)
        yield ThreadItemAddedEvent(item=item)
        raise KeyError(WHAT_WAS_SAID)

    async def say_half(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """An emoji in two halves, as a model may send it, and half a character that stays alone."""
        item = self._message(thread, context)
        yield ThreadItemAddedEvent(item=item)
        for delta in ("Hi ", "\ud83d", "\ude00"):
            yield _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta=delta))
        yield ProgressUpdateEvent(text="bad \ud800 x")
        yield _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta=" more"))
        yield ThreadItemDoneEvent(item=item.model_copy(update={"content": [_content("Hi \ud83d\ude00 more")]}))

    async def say_refuse(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """An error that is meant for the user."""
        yield ProgressUpdateEvent(text="asking the kitchen")
        raise CustomStreamError("The kitchen is closed.", allow_retry=True)

    async def say_hidden(
        self, thread: ThreadMetadata, context: Context, count: str = "3"
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Hidden context, then a message."""
        for number in range(int(count)):
            hidden = HiddenContextItem(content={"n": number}, **self._base("message", thread, context))
            yield ThreadItemDoneEvent(item=hidden)
        yield ThreadItemDoneEvent(item=self._message(thread, context, "seen"))

    async def say_tool(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """A client tool call that waits."""
        base = self._base("tool_call", thread, context)
        yield ThreadItemDoneEvent(item=ClientToolCallItem(call_id="call_1", name="pick", arguments=FREE_JSON, **base))

    async def say_form(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """A structured input that waits."""
        yield ThreadItemDoneEvent(item=self._form(thread, context))

    async def say_title(
        self, thread: ThreadMetadata, context: Context, title: str = "New"
    ) -> AsyncIterator[ThreadStreamEvent]:
        """A message and a title for the thread."""
        thread.title = title
        thread.metadata["seen"] = True
        yield ThreadItemDoneEvent(item=self._message(thread, context, "named"))

    async def say_lock(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """Lock the thread, and restrict where its pictures come from."""
        thread.status = LockedStatus(reason="closed for lunch")
        thread.allowed_image_domains = []
        yield ThreadItemDoneEvent(item=self._message(thread, context, "locked"))
        thread.status = ActiveStatus()
        thread.allowed_image_domains = ["images.test"]

    async def say_everything(self, thread: ThreadMetadata, context: Context) -> AsyncIterator[ThreadStreamEvent]:
        """Every kind of event, item and update, once at least."""
        yield ProgressUpdateEvent(icon="sparkle", text="working …")
        yield NoticeEvent(level="warning", message="**careful**", title="Notice")
        yield ClientEffectEvent(name="confetti", data=FREE_JSON)
        for events in (self._assistant_message, self._widget, self._workflow, self._image):
            for event in events(thread, context):
                yield event
        for item in self._other_items(thread, context):
            yield ThreadItemDoneEvent(item=item)
        gone = TaskItem(task=ImageTask(title="gone"), **self._base("task", thread, context))
        yield ThreadItemDoneEvent(item=gone)
        yield ThreadItemReplacedEvent(item=gone.model_copy(update={"task": ThoughtTask(content="replaced")}))
        yield ThreadItemRemovedEvent(item_id=gone.id)
        yield ErrorEvent(code="custom", message="not really", allow_retry=False)

    def _assistant_message(self, thread: ThreadMetadata, context: Context) -> list[ThreadStreamEvent]:
        item = self._message(thread, context)
        sources: list[URLSource | FileSource | EntitySource] = [
            URLSource(title="t", url="https://a.test/", description="d", timestamp="today", group="g", attribution="a"),
            FileSource(title="f", filename="f.pdf"),
            EntitySource(title="e", id="1", icon="cube", label="l", inline_label="i", interactive=True, data=FREE_JSON),
        ]
        annotations = [Annotation(source=source, index=index) for index, source in enumerate(sources)]
        text = "line\r\n\r\ndata: x\u2028 \U0001f600"
        done = AssistantMessageContent(text=text, annotations=annotations)
        return [
            ThreadItemAddedEvent(item=item),
            _updated(item, AssistantMessageContentPartAdded(content_index=0, content=_content(""))),
            _updated(item, AssistantMessageContentPartTextDelta(content_index=0, delta=text)),
            *(
                _updated(
                    item,
                    AssistantMessageContentPartAnnotationAdded(content_index=0, annotation_index=i, annotation=a),
                )
                for i, a in enumerate(annotations)
            ),
            _updated(item, AssistantMessageContentPartDone(content_index=0, content=done)),
            ThreadItemDoneEvent(item=item.model_copy(update={"content": [done]})),
        ]

    def _widget(self, thread: ThreadMetadata, context: Context) -> list[ThreadStreamEvent]:
        item = WidgetItem(widget=widget_root("a"), copy_text="copied", **self._base("message", thread, context))
        component = widget_root("abc").children
        assert isinstance(component, list)
        return [
            ThreadItemAddedEvent(item=item),
            _updated(item, WidgetStreamingTextValueDelta(component_id="md", delta="b", done=False)),
            _updated(item, WidgetComponentUpdated(component_id="md", component=component[0])),
            _updated(item, WidgetRootUpdated(widget=widget_root("abcd"))),
            ThreadItemDoneEvent(item=item.model_copy(update={"widget": widget_root("abcd")})),
        ]

    def _workflow(self, thread: ThreadMetadata, context: Context) -> list[ThreadStreamEvent]:
        base = self._base("workflow", thread, context)
        item = WorkflowItem(workflow=Workflow(type="custom", tasks=[]), **base)
        tasks: list[Task] = [
            CustomTask(title="t", icon="lucide:cat", content="c", status_indicator="loading"),
            SearchTask(title_query="q", queries=["q"], sources=[URLSource(title="u", url="https://u.test/")]),
            ThoughtTask(title="t", content="hm"),
            FileTask(sources=[FileSource(title="f", filename="f")]),
            ImageTask(title="i"),
        ]
        done = Workflow(type="custom", tasks=tasks, summary=CustomSummary(title="s", icon="bolt"), expanded=True)
        timed = Workflow(type="reasoning", tasks=[], summary=DurationSummary(duration=3))
        return [
            ThreadItemAddedEvent(item=item),
            *(_updated(item, WorkflowTaskAdded(task_index=i, task=task)) for i, task in enumerate(tasks)),
            _updated(item, WorkflowTaskUpdated(task_index=0, task=CustomTask(status_indicator="complete"))),
            ThreadItemDoneEvent(item=item.model_copy(update={"workflow": done})),
            ThreadItemDoneEvent(item=WorkflowItem(workflow=timed, **self._base("workflow", thread, context))),
        ]

    def _image(self, thread: ThreadMetadata, context: Context) -> list[ThreadStreamEvent]:
        item = GeneratedImageItem(**self._base("message", thread, context))
        image = GeneratedImage(id="img_1", url="data:image/png;base64,AA==")
        return [
            ThreadItemAddedEvent(item=item),
            _updated(item, GeneratedImageUpdated(image=image, progress=0.5)),
            ThreadItemDoneEvent(item=item.model_copy(update={"image": image})),
        ]

    def _other_items(self, thread: ThreadMetadata, context: Context) -> list[ThreadItem]:
        call = ClientToolCallItem(
            call_id="call_2",
            name="done",
            arguments=FREE_JSON,
            status="completed",
            output=FREE_JSON,
            **self._base("tool_call", thread, context),
        )
        return [
            call,
            self._form(thread, context),
            TaskItem(task=CustomTask(title="task"), **self._base("task", thread, context)),
            HiddenContextItem(content=FREE_JSON, **self._base("message", thread, context)),
            EndOfTurnItem(**self._base("message", thread, context)),
        ]

    def _form(self, thread: ThreadMetadata, context: Context) -> StructuredInputItem:
        options = [StructuredInputMultipleChoiceOption(value=value) for value in ("red", "blue")]
        return StructuredInputItem(
            inputs=[
                StructuredInputMultipleChoice(id="color", question="Which?", options=options),
                StructuredInputFreeform(id="why", question="Why?", description="Be brief."),
            ],
            **self._base("message", thread, context),
        )

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: Context
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Say what was asked for."""
        told = {"type": action.type, "payload": action.payload, "sender": sender is not None}
        yield ClientEffectEvent(name="action", data=told)

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: Context
    ) -> SyncCustomActionResponse:
        """Answer with the widget as it would be."""
        if sender is None:
            return SyncCustomActionResponse()
        return SyncCustomActionResponse(updated_item=sender.model_copy(update={"widget": widget_root("synced")}))

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: Context) -> None:
        """Keep it."""
        self.feedback.append((thread_id, item_ids, feedback))

    async def transcribe(self, audio_input: AudioInput, context: Context) -> TranscriptionResult:
        """Say how much was heard."""
        return TranscriptionResult(text=f"{len(audio_input.data)} bytes of {audio_input.media_type}")

    def _message(self, thread: ThreadMetadata, context: Context, text: str | None = None) -> AssistantMessageItem:
        content = [] if text is None else [_content(text)]
        return AssistantMessageItem(content=content, **self._base("message", thread, context))

    def _base(self, kind: Any, thread: ThreadMetadata, context: Context) -> dict[str, Any]:
        item_id = self.store.generate_item_id(kind, thread, context)
        return {"id": item_id, "thread_id": thread.id, "created_at": datetime.now()}


def _content(text: str) -> AssistantMessageContent:
    return AssistantMessageContent(text=text, annotations=[])


def _updated(item: ThreadItem, update: ThreadItemUpdate) -> ThreadItemUpdatedEvent:
    return ThreadItemUpdatedEvent(item_id=item.id, update=update)


def _text_of(message: UserMessageItem | None) -> str:
    if message is None:
        return ""
    return "".join(part.text for part in message.content if isinstance(part, UserMessageTextContent))
