"""The schema against the SDK: a type tag, a member or a value that one of them has and the other lacks is named."""

from __future__ import annotations

import functools
import operator
import re
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from chatkit import types as sdk
from chatkit_grpc import schema
from chatkit_grpc.v1 import attachment_pb2, attachment_service_pb2, chat_service_pb2, thread_service_pb2
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from chatkit_grpc.v1.event_pb2 import ThreadItemUpdate, ThreadStreamEvent
from chatkit_grpc.v1.item_pb2 import Source, StructuredInput, Task, ThreadItem, UserMessageContent
from chatkit_grpc.v1.thread_pb2 import Thread, ThreadStatus
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from pydantic import BaseModel, create_model

ROOTS: list[tuple[Any, type[Any]]] = [
    (sdk.ChatKitReq, ChatKitRequest),
    (sdk.ThreadStreamEvent, ThreadStreamEvent),
    (sdk.ThreadItem, ThreadItem),
    (sdk.ThreadItemUpdate, ThreadItemUpdate),
    (sdk.Task, Task),
    (sdk.Source, Source),
    (sdk.Attachment, attachment_pb2.Attachment),
    (sdk.ThreadStatus, ThreadStatus),
    (sdk.StructuredInput, StructuredInput),
    (sdk.UserMessageContent, UserMessageContent),
    (sdk.Thread, Thread),
    (sdk.Thread, thread_service_pb2.GetThreadResponse),
    (sdk.Thread, thread_service_pb2.UpdateThreadResponse),
    (sdk.Page[sdk.Thread], thread_service_pb2.ListThreadsResponse),
    (sdk.Page[sdk.ThreadItem], thread_service_pb2.ListItemsResponse),
    (sdk.Attachment, attachment_service_pb2.CreateAttachmentResponse),
    (sdk.TranscriptionResult, chat_service_pb2.TranscribeResponse),
    (sdk.SyncCustomActionResponse, chat_service_pb2.RunSyncActionResponse),
]

NEVER_ON_THE_WIRE = {
    "FileAttachment.metadata": "the SDK leaves it out of what it sends: context={'exclude_metadata': True}",
    "ImageAttachment.metadata": "the SDK leaves it out of what it sends: context={'exclude_metadata': True}",
}
NARROWER_IN_THE_SDK = {
    "SearchTask.sources": "a search finds pages only, but a page is a source like others",
    "FileTask.sources": "what is read is files only, but a file is a source like others",
}
OURS_ALONE = {
    "ChatKitRequest.runs.resume": "the SDK's answers end with the connection, ours can be watched again",
    "ChatKitRequest.runs.get": "what an answer took of which model",
    "ChatKitRequest.runs.cancel": "for the same reason: to leave an answer isn't to stop it",
    "ChatKitRequest.threads.search": "the SDK's stores can't search",
    **{
        f"{name}.request_id": "makes it safe to repeat a call that starts a run"
        for name in (
            "CreateThreadRequest",
            "AddUserMessageRequest",
            "AddClientToolOutputRequest",
            "AddStructuredInputRequest",
            "RetryAfterItemRequest",
            "RunActionRequest",
        )
    },
}


def differences(
    annotation: Any, descriptor: Descriptor, seen: set[str] | None = None, *, may_be_narrower: bool = False
) -> Iterator[str]:
    """What an SDK type and a message don't have in common, by name, and the same for all that they hold."""
    seen = set() if seen is None else seen
    models, message = _models(annotation), _unwrapped(descriptor)
    key = f"{message.full_name} {sorted(model.__qualname__ for model in models)}"
    if key in seen:
        return
    seen.add(key)
    if (oneof := schema.tagged_oneof(message)) is not None:
        tags = {schema.json_type(field): field for field in oneof.fields if schema.json_type(field)}
        for model in models:
            yield from _case_differences(model, tags.pop(_tag(model), None), message, seen)
        if not may_be_narrower:
            ours = {tag for tag in tags if f"{message.name}.{tag}" in OURS_ALONE}
            yield from (f'{message.name}: the SDK has no type "{tag}"' for tag in tags if tag not in ours)
    else:
        yield from _member_differences(models, message.fields, message.name, seen)


def _case_differences(
    model: type[BaseModel], case: FieldDescriptor | None, union: Descriptor, seen: set[str]
) -> Iterator[str]:
    """A model against the case of a union."""
    if case is None or case.containing_oneof is None:
        yield f'{union.name}: the schema has no type "{_tag(model)}" ({model.__name__})'
        return
    fields = list(schema.plain_fields(union))
    if content := schema.content_member(case.containing_oneof):
        yield from differences(_members(model)[content], schema.message_of(case), seen)
    else:
        fields += schema.plain_fields(schema.message_of(case))
    yield from _member_differences([model], fields, model.__name__, seen, elsewhere={"type", content})


def _member_differences(
    models: list[type[BaseModel]],
    fields: Sequence[FieldDescriptor],
    name: str,
    seen: set[str],
    elsewhere: set[str] | None = None,
) -> Iterator[str]:
    """The members of a model, or of several that the schema has in one message."""
    members = {member: held for model in models for member, held in _members(model).items()}
    for excluded in elsewhere or ():
        members.pop(excluded, None)
    known = {schema.json_name(field): field for field in fields}
    for member, annotation in members.items():
        if f"{name}.{member}" in NEVER_ON_THE_WIRE:
            continue
        if member not in known:
            yield f'{name}: the schema has no member "{member}"'
        else:
            yield from _value_differences(annotation, known[member], f"{name}.{member}", seen)
    lacking = [member for member in known if member not in members and f"{name}.{member}" not in OURS_ALONE]
    yield from (f'{name}: the SDK has no member "{member}"' for member in lacking)


def _value_differences(annotation: Any, field: FieldDescriptor, path: str, seen: set[str]) -> Iterator[str]:
    """The values of one member."""
    if schema.raw_json(field):
        return
    if type(None) in get_args(annotation) and not (schema.is_optional(field) or schema.is_union(field)):
        yield f"{path}: may be absent in the SDK, not in the schema"
    value = schema.value_field(field) if schema.is_map(field) else field
    if value.enum_type is not None:
        lacking = set(_literals(annotation)) - set(schema.enum_names(value.enum_type).values())
        yield from (f'{path}: the schema has no value "{literal}"' for literal in sorted(lacking))
    if _models(annotation):
        if value.message_type is None:
            yield f"{path}: an object in the SDK, not in the schema"
        else:
            yield from differences(annotation, value.message_type, seen, may_be_narrower=path in NARROWER_IN_THE_SDK)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of a type may be, whether alone, in a list or in a dict."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    arguments = get_args(annotation)
    return [
        model for part in arguments[: 1 if get_origin(annotation) is Annotated else None] for model in _models(part)
    ]


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [literal for part in get_args(annotation) for literal in _literals(part)]
    return []


def _members(model: type[BaseModel]) -> dict[str, Any]:
    model.model_rebuild()  # else some annotations are still text
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _tag(model: type[BaseModel]) -> str:
    (tag,) = _literals(_members(model)["type"])
    return tag


def _unwrapped(descriptor: Descriptor) -> Descriptor:
    held = descriptor.fields[0].message_type if schema.is_unwrapped(descriptor) else None
    return descriptor if held is None else held


@pytest.mark.parametrize(("annotation", "message_type"), ROOTS, ids=[message.__name__ for _, message in ROOTS])
def test_the_schema_has_what_the_sdk_has_and_nothing_else(annotation: Any, message_type: type[Any]) -> None:
    assert list(differences(annotation, message_type.DESCRIPTOR)) == []


def test_the_walk_comes_to_every_message_that_the_messages_of_this_test_hold() -> None:
    seen: set[str] = set()
    for annotation, message_type in ROOTS:
        assert list(differences(annotation, message_type.DESCRIPTOR, seen)) == []
    walked = {key.partition(" ")[0] for key in seen}
    held = {name for _, message_type in ROOTS for name in _held_messages(message_type.DESCRIPTOR, set())}
    assert held - walked == set()


def _held_messages(descriptor: Descriptor, seen: set[str]) -> Iterator[str]:
    """The messages in a message that aren't cases of a union, which are walked as members of it."""
    if descriptor.full_name in seen:
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        inner = schema.value_field(field).message_type if schema.is_map(field) else field.message_type
        if inner is None or inner.full_name.startswith("google.") or schema.is_unwrapped(inner):
            continue
        if not schema.json_type(field):
            yield inner.full_name
        yield from _held_messages(inner, seen)


def test_every_exclusion_is_still_needed() -> None:
    for name in [*NEVER_ON_THE_WIRE, *NARROWER_IN_THE_SDK]:
        model, _, member = name.partition(".")
        assert member in getattr(sdk, model).model_fields


def test_what_is_ours_alone_is_in_the_schema_and_still_unknown_to_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = dict(OURS_ALONE)
    monkeypatch.setattr(f"{__name__}.OURS_ALONE", {})
    complaints = differences(sdk.ChatKitReq, ChatKitRequest.DESCRIPTOR)
    told = re.compile(r'(\w+): the SDK has no (?:type|member) "(.+)"')
    assert {told.sub(r"\1.\2", complaint) for complaint in complaints} == set(ours)


def test_every_union_that_the_sdk_may_add_to_can_carry_what_the_schema_does_not_know() -> None:
    for _, message_type in ROOTS[1:10]:
        oneof = schema.tagged_oneof(message_type.DESCRIPTOR)
        assert oneof is not None
        assert schema.unknown_case(oneof) == "unknown", message_type


def _more(base: type[BaseModel], **members: Any) -> type[BaseModel]:
    """A model with more members than the SDK's, or with others."""
    base.model_rebuild()
    return create_model(f"New{base.__name__}", __base__=base, **members)


def _events_with(made_up: type[BaseModel]) -> Any:
    others = [model for model in _models(sdk.ThreadStreamEvent) if _tag(model) != _tag(made_up)]
    return _union(*others, made_up)


def _union(*models: type[BaseModel]) -> Any:
    return functools.reduce(operator.or_, models)


LoudNotice = _more(sdk.NoticeEvent, sound=(str, "ping"))
SternNotice = _more(sdk.NoticeEvent, level=(Literal["info", "warning", "danger", "panic"], ...))
CountedPage = _more(sdk.Page[sdk.ThreadItem], total=(int, ...))
MovedThread = _more(sdk.Thread, id=(str | None, None), items=(CountedPage, ...))
MovedThreadEvent = _more(sdk.ThreadCreatedEvent, thread=(MovedThread, ...))


class SirenEvent(BaseModel):
    """An event of a kind that there is not."""

    type: Literal["siren"] = "siren"


class BareNotice(BaseModel):
    """A notice that has lost a member."""

    type: Literal["notice"] = "notice"
    level: Literal["info"]
    message: str


@pytest.mark.parametrize(
    ("made_up", "complaints"),
    [
        (LoudNotice, ['NewNoticeEvent: the schema has no member "sound"']),
        (SirenEvent, ['ThreadStreamEvent: the schema has no type "siren" (SirenEvent)']),
        (SternNotice, ['NewNoticeEvent.level: the schema has no value "panic"']),
        (
            MovedThreadEvent,
            [
                "Thread.id: may be absent in the SDK, not in the schema",
                'ThreadItemPage: the schema has no member "total"',
            ],
        ),
        (BareNotice, ['BareNotice: the SDK has no member "title"']),
    ],
)
def test_what_only_one_of_them_has_is_named(made_up: type[BaseModel], complaints: list[str]) -> None:
    assert list(differences(_events_with(made_up), ThreadStreamEvent.DESCRIPTOR)) == complaints


def test_a_new_member_of_a_requests_parameters_is_named() -> None:
    others = [model for model in _models(sdk.ChatKitReq) if model is not sdk.ThreadsDeleteReq]
    waving = _more(sdk.ThreadsDeleteReq, params=(_more(sdk.ThreadDeleteParams, wave=(bool, ...)), ...))
    assert list(differences(_union(*others, waving), ChatKitRequest.DESCRIPTOR)) == [
        'DeleteThreadRequest: the schema has no member "wave"'
    ]


def test_a_type_that_the_sdk_has_dropped_is_named() -> None:
    others = [model for model in _models(sdk.ThreadStreamEvent) if model is not sdk.ErrorEvent]
    assert list(differences(_union(*others), ThreadStreamEvent.DESCRIPTOR)) == [
        'ThreadStreamEvent: the SDK has no type "error"'
    ]
