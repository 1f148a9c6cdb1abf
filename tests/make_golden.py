"""Golden files: everything the SDK sends and takes, as the SDK prints it. `python -m tests.make_golden` renews them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from chatkit import types as sdk
from chatkit.actions import Action
from chatkit.errors import ErrorCode
from chatkit.types import Page
from chatkit.widgets import WidgetComponent, WidgetRoot
from pydantic import AnyUrl, BaseModel, TypeAdapter

Instances: TypeAlias = dict[str, BaseModel]

FOLDER = Path(__file__).with_name("golden")
MOMENT = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
MOMENT_WITH_FRACTION = datetime(2026, 1, 31, 12, 0, 0, 120450, tzinfo=UTC)
BEFORE_1970 = datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC)
NASTY_TEXT = 'He said "no"\\ \n\r\t\x01\x7f é e\u0301 \u2028\u2029 😀 </script> \\u0000 \ufeff\uffff \U0001d4b3'
_INPUT_OPTIONS = sdk.InferenceOptions(tool_choice=sdk.ToolChoice(id="web"), model="gpt-5")

_widget_root: TypeAdapter[Any] = TypeAdapter(WidgetRoot)
_widget_component: TypeAdapter[Any] = TypeAdapter(WidgetComponent)


class Nothing(BaseModel):
    """What the server answers with where there is nothing to say: a literal b"{}"."""


def printed(instance: BaseModel) -> str:
    """An instance as the SDK's server sends it."""
    return instance.model_dump_json(by_alias=True, exclude_none=True, context={"exclude_metadata": True})


def nested(depth: int) -> Any:
    """Lists in objects in lists."""
    value: Any = 0.5
    for level in range(depth):
        value = {"k": value} if level % 2 else [value]
    return value


def nasty_json() -> dict[str, Any]:
    """Free-form JSON in which everything is that gets lost on the way through other codecs."""
    return {
        "z": 1,
        "a": 2,
        "10": 3,
        "9": 4,
        "ints": [0, -1, 2**53 + 1, -(2**53) - 1, 2**63, 2**70, -(2**70)],
        "floats": [1e5, 1.0, -0.0, 0.1, 1e16, 1e22, 1.7976931348623157e308, 0.30000000000000004],
        "texts": ["", NASTY_TEXT],
        "empty": [[], {}, "", [[]], [{}]],
        "null": None,
        "nulls": [None, {"deep": None}],
        "truth": [True, False],
        "deep": nested(60),
        "": "an empty name",
        NASTY_TEXT: "a nasty name",
        "type": "no tag",
        "unknown": {"params": {"$ref": "#"}},
    }


def real_widgets() -> list[Any]:
    """Widget roots as templates make them, strict and dynamic."""
    text = {"type": "Text", "value": NASTY_TEXT, "streaming": True, "id": "txt", "editable": {"name": "n"}}
    action = {"type": "order.send", "payload": nasty_json(), "handler": "client"}
    button = {"type": "Button", "label": "Send", "onClickAction": action}
    card = {"type": "Card", "key": "c", "padding": {"x": 1.5, "top": "2px"}, "children": [text, button]}
    rows = [{"type": "ListViewItem", "children": [{"type": "Markdown", "value": "**b**"}], "gap": 3}]
    dynamic = {"type": "Basic", "children": {"type": "NotYetKnown", "zeta": nasty_json(), "alpha": [None, 1.0]}}
    return [
        _widget_root.validate_python(root)
        for root in (
            {"type": "Card", "children": []},
            card,
            {"type": "ListView", "children": rows, "limit": "auto", "status": {"text": "s", "icon": "bolt"}},
            dynamic,
            {"type": "Card", "children": [{"type": "NotYetKnown", "new": 1}], "novelty": {"b": 1, "a": 2}},
        )
    ]


def real_components() -> list[Any]:
    """Components of widgets, known and not."""
    return [
        _widget_component.validate_python(component)
        for component in (
            {"type": "Divider"},
            {"type": "Text", "value": NASTY_TEXT, "maxLines": 3, "width": 1.0},
            {"type": "NotYetKnown", "zeta": nasty_json(), "alpha": 1e5},
        )
    ]


def sources() -> list[sdk.URLSource | sdk.FileSource | sdk.EntitySource]:
    """Every kind of source, with little and with all."""
    shared: dict[str, Any] = {"description": NASTY_TEXT, "timestamp": "yesterday", "group": "g"}
    return [
        sdk.URLSource(title="t", url="https://example.com"),
        sdk.URLSource(title=NASTY_TEXT, url="https://example.com/?a=1&b=%20", attribution="Example", **shared),
        sdk.FileSource(title="t", filename="a.txt"),
        sdk.FileSource(title=NASTY_TEXT, filename=NASTY_TEXT, **shared),
        sdk.EntitySource(title="t", id="e"),
        sdk.EntitySource(
            title=NASTY_TEXT,
            id="e",
            icon="vendor:acme",
            label="l",
            inline_label="i",
            interactive=True,
            data=nasty_json(),
            preview="lazy",
            **shared,
        ),
    ]


def content_parts() -> list[sdk.AssistantMessageContent]:
    """Parts of an assistant's message, bare and with every kind of source."""
    annotations = [sdk.Annotation(source=source) for source in sources()]
    annotations += [sdk.Annotation(source=source, index=index) for index, source in enumerate(sources())]
    return [
        sdk.AssistantMessageContent(text=""),
        sdk.AssistantMessageContent(text=NASTY_TEXT, annotations=annotations),
        sdk.AssistantMessageContent(text="the assistant may say \0"),
    ]


def tasks() -> list[sdk.CustomTask | sdk.SearchTask | sdk.ThoughtTask | sdk.FileTask | sdk.ImageTask]:
    """Every kind of task, with little and with all."""
    urls = [source for source in sources() if isinstance(source, sdk.URLSource)]
    files = [source for source in sources() if isinstance(source, sdk.FileSource)]
    return [
        sdk.CustomTask(),
        sdk.CustomTask(status_indicator="loading", title=NASTY_TEXT, icon="lucide:cat", content=NASTY_TEXT),
        sdk.SearchTask(),
        sdk.SearchTask(status_indicator="complete", title="t", title_query="q", queries=["a", ""], sources=urls),
        sdk.ThoughtTask(content=""),
        sdk.ThoughtTask(status_indicator="loading", title="t", content=NASTY_TEXT),
        sdk.FileTask(),
        sdk.FileTask(status_indicator="complete", title="t", sources=files),
        sdk.ImageTask(),
        sdk.ImageTask(status_indicator="none", title="t"),
        sdk.ImageTask(status_indicator="complete"),
    ]


def workflows() -> list[sdk.Workflow]:
    """Workflows of both types, with either summary and with none."""
    return [
        sdk.Workflow(type="custom", tasks=[]),
        sdk.Workflow(type="reasoning", tasks=tasks(), summary=sdk.DurationSummary(duration=3), expanded=True),
        sdk.Workflow(type="custom", tasks=tasks()[:1], summary=sdk.DurationSummary(duration=0)),
        sdk.Workflow(type="custom", tasks=[], summary=sdk.CustomSummary(title="")),
        sdk.Workflow(type="custom", tasks=[], summary=sdk.CustomSummary(title=NASTY_TEXT, icon="sparkle")),
    ]


def attachments() -> list[sdk.FileAttachment | sdk.ImageAttachment]:
    """Both kinds of attachment; their metadata never travels."""
    url = AnyUrl("https://example.com/up?x=1")
    upload = sdk.AttachmentUploadDescriptor(url=url, method="PUT", headers={"b": NASTY_TEXT, "a": ""})
    post = sdk.AttachmentUploadDescriptor(url=url, method="POST")
    secret = {"secret": True}
    image = {"name": "cat.png", "mime_type": "image/png", "preview_url": AnyUrl("https://example.com/cat")}
    return [
        sdk.FileAttachment(id="atc_1", name="a.txt", mime_type="text/plain"),
        sdk.FileAttachment(
            id="atc_2",
            name=NASTY_TEXT,
            mime_type="text/plain",
            upload_descriptor=upload,
            thread_id="thr_1",
            metadata=secret,
        ),
        sdk.ImageAttachment.model_validate({"id": "atc_3", **image}),
        sdk.ImageAttachment.model_validate(
            {"id": "atc_4", "upload_descriptor": post, "thread_id": "thr_1", "metadata": secret, **image}
        ),
    ]


def user_content() -> list[sdk.UserMessageTextContent | sdk.UserMessageTagContent]:
    """What a user's message is made of."""
    return [
        sdk.UserMessageTextContent(text=""),
        sdk.UserMessageTextContent(text=NASTY_TEXT),
        sdk.UserMessageTagContent(id="t", text="@t", data={}),
        sdk.UserMessageTagContent(id="t", text=NASTY_TEXT, data=nasty_json(), group="g", interactive=True),
    ]


def structured_inputs() -> list[sdk.StructuredInputMultipleChoice | sdk.StructuredInputFreeform]:
    """Every kind of question, open and answered."""
    choice = sdk.StructuredInputMultipleChoiceOption(value=NASTY_TEXT)
    answered = sdk.StructuredInputAnswer(values=["a", NASTY_TEXT])
    skipped = sdk.StructuredInputAnswer(skipped=True)
    return [
        sdk.StructuredInputMultipleChoice(id="q1", question="", options=[]),
        sdk.StructuredInputMultipleChoice(
            id="q2", question=NASTY_TEXT, answer=answered, options=[choice, choice], multiple=True
        ),
        sdk.StructuredInputFreeform(id="q3", question=""),
        sdk.StructuredInputFreeform(id="q4", question="?", answer=skipped, description=NASTY_TEXT),
        sdk.StructuredInputFreeform(id="q5", question="?", answer=sdk.StructuredInputAnswer()),
    ]


def items() -> Instances:
    """Every kind of item."""
    base: dict[str, Any] = {"id": "itm_1", "thread_id": "thr_1", "created_at": MOMENT}
    full: dict[str, Any] = {"id": NASTY_TEXT, "thread_id": "thr_1", "created_at": MOMENT_WITH_FRACTION}
    call: dict[str, Any] = {"call_id": "c", "name": "n"}
    instances: Instances = {
        "user_message, minimal": sdk.UserMessageItem(content=[], inference_options=sdk.InferenceOptions(), **base),
        "user_message, full": sdk.UserMessageItem(
            content=user_content(),
            attachments=attachments(),
            quoted_text=NASTY_TEXT,
            inference_options=_INPUT_OPTIONS,
            **full,
        ),
        "assistant_message, minimal": sdk.AssistantMessageItem(content=[], **base),
        "assistant_message, full": sdk.AssistantMessageItem(content=content_parts(), **full),
        "client_tool_call, minimal": sdk.ClientToolCallItem(arguments={}, **call, **base),
        "client_tool_call, full": sdk.ClientToolCallItem(
            status="completed", arguments=nasty_json(), output=nasty_json(), **call, **full
        ),
        "client_tool_call, NUL": sdk.ClientToolCallItem(arguments={"nul\0": "\0"}, output="\0", **call, **full),
        "generated_image, minimal": sdk.GeneratedImageItem(**base),
        "generated_image, full": sdk.GeneratedImageItem(image=sdk.GeneratedImage(id="g", url="data:,x"), **full),
        "structured_input, minimal": sdk.StructuredInputItem(inputs=[], **base),
        "structured_input, full": sdk.StructuredInputItem(status="answered", inputs=structured_inputs(), **full),
        "structured_input, skipped": sdk.StructuredInputItem(status="skipped", inputs=structured_inputs(), **base),
        "hidden_context_item, null": sdk.HiddenContextItem(content=None, **base),
        "hidden_context_item, full": sdk.HiddenContextItem(content=nasty_json(), **full),
        "sdk_hidden_context, minimal": sdk.SDKHiddenContextItem(content="", **base),
        "sdk_hidden_context, full": sdk.SDKHiddenContextItem(content=NASTY_TEXT, **full),
        "end_of_turn, minimal": sdk.EndOfTurnItem(**base),
        "end_of_turn, before 1970": sdk.EndOfTurnItem(id="", thread_id="", created_at=BEFORE_1970),
    }
    for number, output in enumerate(["", 0, -0.0, False, [], {}, 2**70, [None]]):
        instances[f"client_tool_call, output {number}"] = sdk.ClientToolCallItem(
            arguments={}, output=output, **call, **base
        )
    for number, widget in enumerate(real_widgets()):
        instances[f"widget, {number}"] = sdk.WidgetItem(widget=widget, copy_text=NASTY_TEXT if number else None, **base)
    for number, workflow in enumerate(workflows()):
        instances[f"workflow, {number}"] = sdk.WorkflowItem(workflow=workflow, **base)
    for number, task in enumerate(tasks()):
        instances[f"task, {number}"] = sdk.TaskItem(task=task, **base)
    return instances


def updates() -> Instances:
    """Every kind of change to an item."""
    instances: Instances = {
        "assistant_message.content_part.text_delta, minimal": sdk.AssistantMessageContentPartTextDelta(
            content_index=0, delta=""
        ),
        "assistant_message.content_part.text_delta, full": sdk.AssistantMessageContentPartTextDelta(
            content_index=7, delta=NASTY_TEXT
        ),
        "widget.streaming_text.value_delta, minimal": sdk.WidgetStreamingTextValueDelta(
            component_id="", delta="", done=False
        ),
        "widget.streaming_text.value_delta, full": sdk.WidgetStreamingTextValueDelta(
            component_id="c", delta=NASTY_TEXT, done=True
        ),
        "generated_image.updated, minimal": sdk.GeneratedImageUpdated(image=sdk.GeneratedImage(id="", url="")),
    }
    for progress in (0.0, 1.0, 0.1, 1e-10):
        instances[f"generated_image.updated, {progress}"] = sdk.GeneratedImageUpdated(
            image=sdk.GeneratedImage(id="g", url="https://example.com"), progress=progress
        )
    for number, content in enumerate(content_parts()):
        instances |= {
            f"assistant_message.content_part.added, {number}": sdk.AssistantMessageContentPartAdded(
                content_index=number, content=content
            ),
            f"assistant_message.content_part.done, {number}": sdk.AssistantMessageContentPartDone(
                content_index=number, content=content
            ),
        }
    for number, source in enumerate(sources()):
        annotation = sdk.Annotation(source=source, index=number or None)
        instances[f"assistant_message.content_part.annotation_added, {number}"] = (
            sdk.AssistantMessageContentPartAnnotationAdded(
                content_index=number, annotation_index=number, annotation=annotation
            )
        )
    for number, widget in enumerate(real_widgets()):
        instances[f"widget.root.updated, {number}"] = sdk.WidgetRootUpdated(widget=widget)
    for number, component in enumerate(real_components()):
        instances[f"widget.component.updated, {number}"] = sdk.WidgetComponentUpdated(
            component_id="c", component=component
        )
    for number, task in enumerate(tasks()):
        instances[f"workflow.task.added, {number}"] = sdk.WorkflowTaskAdded(task_index=number, task=task)
        instances[f"workflow.task.updated, {number}"] = sdk.WorkflowTaskUpdated(task_index=number, task=task)
    return instances


def threads() -> list[sdk.Thread]:
    """Threads in every state, as the server answers with them."""
    some_items: Any = [item for name, item in items().items() if name.endswith("full")]
    full_page: Page[Any] = Page(data=some_items, has_more=True, after=NASTY_TEXT)
    return [
        sdk.Thread(id="thr_1", created_at=MOMENT, items=Page()),
        sdk.Thread(
            id="thr_2",
            created_at=MOMENT_WITH_FRACTION,
            title=NASTY_TEXT,
            status=sdk.LockedStatus(reason=NASTY_TEXT),
            allowed_image_domains=["example.com", "*.example.org"],
            metadata=nasty_json(),
            items=full_page,
        ),
        sdk.Thread(id="thr_3", created_at=MOMENT, title="", status=sdk.LockedStatus(), items=Page()),
        sdk.Thread(id="thr_4", created_at=MOMENT, status=sdk.ClosedStatus(reason="r"), items=Page()),
        sdk.Thread(
            id="thr_5", created_at=BEFORE_1970, status=sdk.ClosedStatus(), allowed_image_domains=[], items=Page()
        ),
    ]


def events() -> Instances:
    """Every kind of event."""
    instances: Instances = {
        "thread.item.removed, minimal": sdk.ThreadItemRemovedEvent(item_id=""),
        "thread.item.removed, full": sdk.ThreadItemRemovedEvent(item_id=NASTY_TEXT),
        "stream_options, minimal": sdk.StreamOptionsEvent(stream_options=sdk.StreamOptions(allow_cancel=False)),
        "stream_options, full": sdk.StreamOptionsEvent(stream_options=sdk.StreamOptions(allow_cancel=True)),
        "progress_update, minimal": sdk.ProgressUpdateEvent(text=""),
        "progress_update, full": sdk.ProgressUpdateEvent(text=NASTY_TEXT, icon="atom"),
        "client_effect, minimal": sdk.ClientEffectEvent(name=""),
        "client_effect, full": sdk.ClientEffectEvent(name=NASTY_TEXT, data=nasty_json()),
        "error, minimal": sdk.ErrorEvent(),
        "error, full": sdk.ErrorEvent(code=ErrorCode.STREAM_ERROR, message=NASTY_TEXT, allow_retry=True),
        "notice, minimal": sdk.NoticeEvent(level="info", message=""),
        "notice, warning": sdk.NoticeEvent(level="warning", message="m", title=""),
        "notice, full": sdk.NoticeEvent(level="danger", message=NASTY_TEXT, title=NASTY_TEXT),
    }
    for number, thread in enumerate(threads()):
        instances[f"thread.created, {number}"] = sdk.ThreadCreatedEvent(thread=thread)
        instances[f"thread.updated, {number}"] = sdk.ThreadUpdatedEvent(thread=thread)
    for name, item in items().items():
        if name.endswith(("minimal", "full", "1")):
            held: Any = item
            instances[f"thread.item.added, {name}"] = sdk.ThreadItemAddedEvent(item=held)
            instances[f"thread.item.done, {name}"] = sdk.ThreadItemDoneEvent(item=held)
            instances[f"thread.item.replaced, {name}"] = sdk.ThreadItemReplacedEvent(item=held)
    for name, update in updates().items():
        if name.endswith(("minimal", "full", "1")):
            change: Any = update
            instances[f"thread.item.updated, {name}"] = sdk.ThreadItemUpdatedEvent(item_id="itm_1", update=change)
    return instances


def requests() -> Instances:
    """Every operation, as a page asks for it."""
    metadata = nasty_json()
    minimal = sdk.UserMessageInput(content=[], attachments=[], inference_options=sdk.InferenceOptions())
    full = sdk.UserMessageInput(
        content=user_content(), attachments=["atc_1", ""], quoted_text=NASTY_TEXT, inference_options=_INPUT_OPTIONS
    )
    thread: dict[str, Any] = {"thread_id": "thr_1"}
    item: dict[str, Any] = {"thread_id": NASTY_TEXT, "item_id": "itm_1"}
    bare_action = sdk.ThreadCustomActionParams(action=Action[str, Any](type="a"), **thread)
    full_action = sdk.ThreadCustomActionParams(action=Action[str, Any](type=NASTY_TEXT, payload=nasty_json()), **item)
    answers = {
        "q2": sdk.StructuredInputAnswerSubmission(values=["a", NASTY_TEXT]),
        NASTY_TEXT: sdk.StructuredInputAnswerSubmission(skipped=True),
        "": sdk.StructuredInputAnswerSubmission(),
    }
    answered = sdk.StructuredInputSubmission(answers=answers)
    skipped = sdk.StructuredInputSubmission(status="skipped")
    page: dict[str, Any] = {"limit": 2**31 - 1, "order": "asc", "after": NASTY_TEXT}
    read, change = sdk.ThreadGetByIdParams(**thread), sdk.ThreadUpdateParams(title="", **thread)
    file = sdk.AttachmentCreateParams(name=NASTY_TEXT, size=2**63 - 1, mime_type="text/plain")
    empty_file = sdk.AttachmentCreateParams(name="", size=0, mime_type="")
    speech = sdk.InputTranscribeParams(audio_base64="AAH+/w==", mime_type="audio/webm;codecs=opus")
    silence = sdk.InputTranscribeParams(audio_base64="", mime_type="")
    good = sdk.ItemFeedbackParams(item_ids=["a", NASTY_TEXT], kind="positive", **thread)
    bad = sdk.ItemFeedbackParams(item_ids=[], kind="negative", **thread)
    add = sdk.ThreadAddUserMessageParams
    submit = sdk.ThreadAddStructuredInputParams
    output = sdk.ThreadAddClientToolOutputParams
    retry, listing = sdk.ThreadRetryAfterItemParams(**item), sdk.ThreadListParams(**page)
    renaming = sdk.ThreadUpdateParams(title=NASTY_TEXT, **thread)
    results: list[Any] = ["", 0, False, [], {}, -0.0, 2**70, nasty_json()]
    instances: list[BaseModel] = [
        sdk.ThreadsCreateReq(params=sdk.ThreadCreateParams(input=minimal)),
        sdk.ThreadsCreateReq(params=sdk.ThreadCreateParams(input=full), metadata=metadata),
        sdk.ThreadsAddUserMessageReq(params=add(input=minimal, **thread)),
        sdk.ThreadsAddUserMessageReq(params=add(input=full, **thread), metadata=metadata),
        *(sdk.ThreadsAddClientToolOutputReq(params=output(result=result, **thread)) for result in results),
        sdk.ThreadsAddStructuredInputReq(params=submit(input=skipped, **item)),
        sdk.ThreadsAddStructuredInputReq(params=submit(input=answered, **item), metadata=metadata),
        sdk.ThreadsRetryAfterItemReq(params=retry),
        sdk.ThreadsRetryAfterItemReq(params=retry, metadata=metadata),
        sdk.ThreadsCustomActionReq(params=bare_action),
        sdk.ThreadsCustomActionReq(params=full_action, metadata=metadata),
        sdk.ThreadsSyncCustomActionReq(params=bare_action),
        sdk.ThreadsSyncCustomActionReq(params=full_action, metadata=metadata),
        sdk.InputTranscribeReq(params=silence),
        sdk.InputTranscribeReq(params=speech, metadata=metadata),
        sdk.ThreadsGetByIdReq(params=read),
        sdk.ThreadsGetByIdReq(params=read, metadata=metadata),
        sdk.ThreadsListReq(params=sdk.ThreadListParams()),
        sdk.ThreadsListReq(params=listing, metadata=metadata),
        sdk.ThreadsUpdateReq(params=change),
        sdk.ThreadsUpdateReq(params=renaming, metadata=metadata),
        sdk.ThreadsDeleteReq(params=sdk.ThreadDeleteParams(**thread)),
        sdk.ThreadsDeleteReq(params=sdk.ThreadDeleteParams(**thread), metadata=metadata),
        sdk.ItemsListReq(params=sdk.ItemsListParams(**thread)),
        sdk.ItemsListReq(params=sdk.ItemsListParams(**page, **thread), metadata=metadata),
        sdk.ItemsFeedbackReq(params=bad),
        sdk.ItemsFeedbackReq(params=good, metadata=metadata),
        sdk.AttachmentsCreateReq(params=empty_file),
        sdk.AttachmentsCreateReq(params=file, metadata=metadata),
        sdk.AttachmentsDeleteReq(params=sdk.AttachmentDeleteParams(attachment_id="atc_1")),
        sdk.AttachmentsDeleteReq(params=sdk.AttachmentDeleteParams(attachment_id=NASTY_TEXT), metadata=metadata),
    ]
    return {f"{type(instance).__name__}, {number}": instance for number, instance in enumerate(instances)}


def answers() -> Instances:
    """Every answer that isn't a stream; the name begins with the RPC's response type."""
    some_items: Any = list(items().values())
    item_page: Page[Any] = Page(data=some_items, has_more=True, after="itm_1")
    thread_page: Page[Any] = Page(data=threads(), has_more=True, after="thr_5")
    instances: Instances = {
        "ListThreadsResponse, minimal": Page[sdk.Thread](),
        "ListThreadsResponse, full": thread_page,
        "ListItemsResponse, minimal": Page[sdk.ThreadItem](),
        "ListItemsResponse, full": item_page,
        "TranscribeResponse, minimal": sdk.TranscriptionResult(text=""),
        "TranscribeResponse, full": sdk.TranscriptionResult(text=NASTY_TEXT),
        "RunSyncActionResponse, minimal": sdk.SyncCustomActionResponse(),
        "DeleteThreadResponse": Nothing(),
        "AddFeedbackResponse": Nothing(),
        "DeleteAttachmentResponse": Nothing(),
    }
    for number, thread in enumerate(threads()):
        instances[f"GetThreadResponse, {number}"] = thread
        instances[f"UpdateThreadResponse, {number}"] = thread.model_copy(update={"items": Page()})
    for name, item in items().items():
        changed: Any = item
        instances[f"RunSyncActionResponse, {name}"] = sdk.SyncCustomActionResponse(updated_item=changed)
    for number, attachment in enumerate(attachments()):
        instances[f"CreateAttachmentResponse, {number}"] = attachment
    return instances


FILES: Mapping[str, Callable[[], Instances]] = {
    "answers.json": answers,
    "events.json": events,
    "items.json": items,
    "requests.json": requests,
    "updates.json": updates,
}


def rendered(instances: Instances) -> str:
    """A golden file: an object with an instance per line, each exactly as the SDK prints it."""
    lines = [f'"{name}": {printed(instance)}' for name, instance in instances.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(file: str) -> dict[str, str]:
    """The instances of a golden file, each as the text that the SDK printed."""
    # Not splitlines(), which splits at U+2028 too.
    lines = (FOLDER / file).read_text(encoding="utf-8").split("\n")[1:-2]
    named = [line.removesuffix(",").partition(": ") for line in lines]
    return {name.strip('"'): text for name, _, text in named}


def main() -> None:
    """Write all golden files anew."""
    FOLDER.mkdir(exist_ok=True)
    for file, make in FILES.items():
        (FOLDER / file).write_text(rendered(make()), encoding="utf-8")
        print(f"{FOLDER / file}: {len(make())} instances")


if __name__ == "__main__":
    main()
