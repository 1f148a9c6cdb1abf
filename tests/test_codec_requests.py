"""What the codec refuses, and where it says the mistake is; and what it carries though it doesn't know it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from chatkit_grpc import codec, text_delta
from chatkit_grpc.errors import ValidationError
from chatkit_grpc.v1 import (
    attachment_service_pb2,
    chat_service_pb2,
    event_pb2,
    item_pb2,
    run_pb2,
    run_service_pb2,
    thread_service_pb2,
)
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import FloatValue, UInt32Value, UInt64Value
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.make_golden import NASTY_TEXT, nasty_json, nested
from tests.test_codec_golden import exact, unknown_parts

NUL = "holds a NUL character, which can't be stored"
LONE_SURROGATE = "holds a lone surrogate, which is no valid text"
TOO_DEEP = "nested more than 100 levels deep"
ANY_LIMIT = "expected a whole number from 0 to 2147483647"
ANY_SEQUENCE = "expected a whole number from 0 to 9223372036854775807"
TAG = {"type": "input_tag", "id": "t", "text": "@t"}


def request(operation: str, **params: Any) -> dict[str, Any]:
    return {"type": operation, "params": params}


def message_of(*content: Any, **others: Any) -> dict[str, Any]:
    given = {"content": list(content), "attachments": [], "inference_options": {}}
    return request("threads.create", input={**given, **others})


def tool_output(text: str) -> str:
    return f'{{"type":"threads.add_client_tool_output","params":{{"thread_id":"t","result":{text}}}}}'


def limit(value: Any) -> dict[str, Any]:
    return request("threads.list", limit=value)


def answers(value: Any) -> dict[str, Any]:
    return request("threads.add_structured_input", thread_id="t", item_id="i", input={"answers": value})


def feedback(**others: Any) -> dict[str, Any]:
    return request("items.feedback", **{"thread_id": "t", "item_ids": ["a"], "kind": "positive", **others})


def speech(text: str) -> dict[str, Any]:
    return request("input.transcribe", audio_base64=text, mime_type="audio/webm")


def file_of(size: Any) -> dict[str, Any]:
    return request("attachments.create", name="n", mime_type="m", size=size)


def resume(**params: Any) -> dict[str, Any]:
    return request("runs.resume", run_id="run_1", **params)


def retry(**params: Any) -> dict[str, Any]:
    return request("threads.retry_after_item", thread_id="t", item_id="i", **params)


BAD_REQUESTS: list[tuple[Any, str, str]] = [
    # not an object, not JSON, not text
    (b"", "$", "not JSON: Expecting value at line 1, column 1"),
    ("{", "$", "not JSON: Expecting property name enclosed in double quotes at line 1, column 2"),
    ("{} x", "$", "not JSON: Extra data at line 1, column 4"),
    (b'{"type": "\xff"}', "$", "not UTF-8 at byte 10"),
    (b'{"type": "\xed\xa0\x80"}', "$", "not UTF-8 at byte 10"),
    ([], "$", "expected an object, got a list"),
    ("null", "$", "expected an object, got null"),
    ('"x"', "$", "expected an object, got a string"),
    ("true", "$", "expected an object, got true"),
    # type and params
    ({}, "$.type", "missing, expected a string"),
    ({"type": None, "params": {}}, "$.type", "expected a string, got null"),
    ({"type": 5, "params": {}}, "$.type", "expected a string, got a number"),
    (request("threads.destroy"), "$.type", 'unknown value "threads.destroy"'),
    ({"type": "threads.list"}, "$.params", "missing, expected an object"),
    ({"type": "threads.list", "params": None}, "$.params", "expected an object, got null"),
    ({"type": "threads.list", "params": []}, "$.params", "expected an object, got a list"),
    # a member that is missing, null or mistyped
    (request("threads.get_by_id"), "$.params.thread_id", "missing"),
    (request("threads.get_by_id", thread_id=None), "$.params.thread_id", "expected a string, got null"),
    (request("threads.get_by_id", thread_id=1.5), "$.params.thread_id", "expected a string, got a number"),
    (request("threads.update", thread_id="t"), "$.params.title", "missing"),
    (request("threads.create", input={}), "$.params.input.content", "missing"),
    (request("threads.create", input=None), "$.params.input", "expected an object, got null"),
    (request("threads.create", input={"content": {}}), "$.params.input.content", "expected a list, got an object"),
    (request("threads.custom_action", thread_id="t", action={}), "$.params.action.type", "missing"),
    (request("threads.add_client_tool_output", thread_id="t"), "$.params.result", "missing"),
    (message_of(attachments=["a", 5]), "$.params.input.attachments[1]", "expected a string, got a number"),
    (message_of(quoted_text=[]), "$.params.input.quoted_text", "expected a string, got a list"),
    (message_of(inference_options={"tool_choice": {}}), "$.params.input.inference_options.tool_choice.id", "missing"),
    (feedback(item_ids="a"), "$.params.item_ids", "expected a list, got a string"),
    ({**limit(1), "metadata": []}, "$.metadata", "expected an object, got a list"),
    (answers([]), "$.params.input.answers", "expected an object, got a list"),
    (answers({"q 1": None}), '$.params.input.answers["q 1"]', "expected an object, got null"),
    (answers({"q": {"values": [1]}}), "$.params.input.answers.q.values[0]", "expected a string, got a number"),
    (answers({"q": {"skipped": 1}}), "$.params.input.answers.q.skipped", "expected true or false, got a number"),
    (request("runs.cancel", thread_id=5), "$.params.thread_id", "expected a string, got a number"),
    (request("runs.cancel", run_id={}), "$.params.run_id", "expected a string, got an object"),
    ({"type": "runs.cancel"}, "$.params", "missing, expected an object"),
    (retry(request_id=5), "$.params.request_id", "expected a string, got a number"),
    # a type inside
    (
        message_of({"type": "input_text", "text": ""}, {"type": "vidoe"}),
        "$.params.input.content[1].type",
        'unknown value "vidoe", expected input_text or input_tag',
    ),
    (message_of({"text": "x"}), "$.params.input.content[0].type", "missing, expected a string"),
    (message_of({"type": "input_text"}), "$.params.input.content[0].text", "missing"),
    (message_of("x"), "$.params.input.content[0]", "expected an object, got a string"),
    (message_of({**TAG, "data": []}), "$.params.input.content[0].data", "expected an object, got a list"),
    # whole numbers
    (limit(-1), "$.params.limit", f"{ANY_LIMIT}, got -1"),
    (limit(2**31), "$.params.limit", f"{ANY_LIMIT}, got 2147483648"),
    (limit(2**70), "$.params.limit", f"{ANY_LIMIT}, got 1180591620717411303424"),
    (limit(10**40), "$.params.limit", f"{ANY_LIMIT}, got one with more than 30 digits"),
    (limit(1e300), "$.params.limit", f"{ANY_LIMIT}, got one with more than 30 digits"),
    (limit(1.5), "$.params.limit", "expected a whole number, got a number"),
    (limit("5"), "$.params.limit", "expected a whole number, got a string"),
    (limit(True), "$.params.limit", "expected a whole number, got true"),
    (file_of(-1), "$.params.size", "expected a whole number from 0 to 9223372036854775807, got -1"),
    (file_of(None), "$.params.size", "expected a whole number, got null"),
    (resume(after_sequence=-1), "$.params.after_sequence", f"{ANY_SEQUENCE}, got -1"),
    (resume(after_sequence=2**63), "$.params.after_sequence", f"{ANY_SEQUENCE}, got {2**63}"),
    (resume(after_sequence="17"), "$.params.after_sequence", "expected a whole number, got a string"),
    # enums
    (request("threads.list", order="up"), "$.params.order", 'unknown value "up", expected asc or desc'),
    (request("threads.list", order="ORDER_ASC"), "$.params.order", 'unknown value "ORDER_ASC", expected asc or desc'),
    (request("threads.list", order=1), "$.params.order", "expected a string, got a number"),
    (feedback(kind="meh"), "$.params.kind", 'unknown value "meh", expected positive or negative'),
    (feedback(kind=None), "$.params.kind", "expected a string, got null"),
    # base64
    (speech("!!"), "$.params.audio_base64", "expected base64"),
    (speech("AAA"), "$.params.audio_base64", "expected base64"),
    (speech("é"), "$.params.audio_base64", "expected base64"),
    (speech("AAAA\n"), "$.params.audio_base64", "expected base64"),
    # a member that is given twice
    ('{"type":"threads.list","params":{},"type":"threads.list"}', "$.type", "given twice"),
    ('{"type":"threads.list","params":{"limit":1,"limit":1}}', "$.params.limit", "given twice"),
    ('{"type":"threads.list","params":{"x":{"y z":1,"y z":2}}}', '$.params.x["y z"]', "given twice"),
    (tool_output('[{"a":{"b":1,"c":2,"b":3}}]'), "$.params.result[0].a.b", "given twice"),
    # NUL
    (request("threads.get_by_id", thread_id="a\0"), "$.params.thread_id", NUL),
    (message_of({"type": "input_text", "text": "a\0b"}), "$.params.input.content[0].text", NUL),
    (message_of({**TAG, "data": {"x": {"y\0": 1}}}), '$.params.input.content[0].data.x["y\\u0000"]', NUL),
    (tool_output(r'["a",{"b":"\u0000"}]'), "$.params.result[1].b", NUL),
    ({**limit(1), "metadata": {"a": ["\0"]}}, "$.metadata.a[0]", NUL),
    (answers({"q\0": {}}), '$.params.input.answers["q\\u0000"]', NUL),
    (retry(request_id="\0"), "$.params.request_id", NUL),
    # lone surrogates
    (message_of(attachments=["\udc00"]), "$.params.input.attachments[0]", LONE_SURROGATE),
    (message_of({"type": "input_text", "text": "\ud800"}), "$.params.input.content[0].text", LONE_SURROGATE),
    (tool_output(r'[{"y":"\ud800x"}]'), "$.params.result[0].y", LONE_SURROGATE),
    (tool_output(r'{"\udc00":1}'), '$.params.result["\\udc00"]', LONE_SURROGATE),
    (answers({"\ud800": {}}), '$.params.input.answers["\\ud800"]', LONE_SURROGATE),
    # numbers that JSON doesn't have, or has no room for
    ('{"type":"threads.list","params":{"limit":NaN}}', "$", "not JSON: NaN is no JSON number"),
    (tool_output("[Infinity]"), "$", "not JSON: Infinity is no JSON number"),
    (tool_output("-Infinity"), "$", "not JSON: -Infinity is no JSON number"),
    (tool_output("[1e999]"), "$", "not JSON: a number too large to be read"),
    (tool_output("9" * 5000), "$", "not JSON: a number with more digits than can be read"),
    (tool_output("-" + "9" * 5000), "$", "not JSON: a number with more digits than can be read"),
    # depth
    ("[" * 100_000, "$", TOO_DEEP),
    ('{"a":' * 100_000, "$", TOO_DEEP),
    ("[" * 5000 + "]" * 5000, "$", TOO_DEEP),
]


@pytest.mark.parametrize(("body", "path", "description"), BAD_REQUESTS, ids=lambda value: str(value)[:60])
def test_a_bad_request_is_refused_with_the_path_of_what_is_wrong(body: Any, path: str, description: str) -> None:
    with pytest.raises(ValidationError) as error:
        codec.decode_request(ChatKitRequest, body if isinstance(body, str | bytes) else json.dumps(body))
    (violation,) = error.value.violations
    assert (violation.path, violation.description) == (path, description)
    assert error.value.metadata == {"path": path}
    assert error.value.message == f"{path}: {description}"
    assert error.value.to_status().message == error.value.message


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(request("\ud800")),
        json.dumps(request("threads.list", order="\ud800")),
        json.dumps(request("x" * 100_000)),
        tool_output(json.dumps({"k" * 100_000: "\0"})),
        tool_output(json.dumps({"k 😀" * 100_000: "\0"})),
    ],
    ids=range(5),
)
def test_an_error_that_quotes_a_request_can_be_sent(body: str) -> None:
    with pytest.raises(ValidationError) as error:
        codec.decode_request(ChatKitRequest, body)
    assert len(error.value.to_status().SerializeToString()) < 4096, "gRPC's trailers hold 8 KiB"


def test_a_member_given_twice_among_thousands_is_found_at_once() -> None:
    members = ",".join(f'"k{number}":1' for number in range(20_000))
    started = time.perf_counter()
    with pytest.raises(ValidationError, match=r"^\$\.params\.result\.k19999: given twice$"):
        codec.decode_request(ChatKitRequest, tool_output(f'{{{members},"k19999":2}}'))
    assert time.perf_counter() - started < 1


def test_a_value_nested_too_deep_is_refused_with_a_path_that_fits_a_line() -> None:
    with pytest.raises(ValidationError) as error:
        codec.decode_request(ChatKitRequest, tool_output("[" * 150 + "]" * 150))
    assert error.value.message == f"$.params.result{'[0]' * 8}…[0][0][0]: {TOO_DEEP}"


def test_a_hundred_levels_are_not_too_deep() -> None:
    value = json.dumps(nested(97))
    message = codec.decode_request(ChatKitRequest, tool_output(value))
    assert json.loads(message.add_client_tool_output.result) == nested(97)
    with pytest.raises(ValidationError, match=TOO_DEEP):
        codec.decode_request(ChatKitRequest, tool_output(json.dumps(nested(99))))


GOOD_REQUESTS: list[tuple[Any, Any]] = [
    (limit(0), limit(0)),
    (limit(None), limit(None)),
    (limit(5.0), limit(5)),
    (request("threads.list", limit=1, order=None, after=None), limit(1)),
    (request("threads.get_by_id", thread_id=""), request("threads.get_by_id", thread_id="")),
    ({**limit(1), "metadata": None}, limit(1)),
    # members that the schema doesn't know, whatever they hold
    ({**limit(1), "novelty": {"a": "\0"}}, limit(1)),
    ({"params": {"limit": 1, "novelty": 1, "type": "x", "metadata": 5}, "type": "threads.list"}, limit(1)),
    (message_of({"type": "input_text", "text": "a", "font": "b"}), message_of({"type": "input_text", "text": "a"})),
    (message_of(TAG), message_of({**TAG, "data": {}, "interactive": False})),
    (message_of({**TAG, "data": None}), message_of({**TAG, "data": {}, "interactive": False})),
    # null is a value where any JSON may stand
    (json.loads(tool_output("null")), json.loads(tool_output("null"))),
    (
        request("threads.custom_action", thread_id="t", action={"type": "a", "payload": None}),
        request("threads.custom_action", thread_id="t", action={"type": "a", "payload": None}),
    ),
    (request("threads.custom_action", thread_id="t", action={"type": "a"}),) * 2,
    # a backslash and u0000 is no NUL, and a pair of surrogates is a character
    (json.loads(tool_output(r'"\\u0000 \ud83d\ude00"')), json.loads(tool_output('"\\\\u0000 😀"'))),
    (answers({}), answers({})),
    (speech(""), speech("")),
    # what the SDK doesn't know
    (resume(after_sequence=17), resume(after_sequence=17)),
    (resume(after_sequence=17.0), resume(after_sequence=17)),
    (resume(), resume(after_sequence=0)),
    (resume(after_sequence=None, thread_id=None), resume(after_sequence=0)),
    (request("runs.cancel", thread_id="thr_1"), request("runs.cancel", thread_id="thr_1")),
    (request("runs.cancel", thread_id=None, run_id="run_1"), request("runs.cancel", run_id="run_1")),
    (retry(request_id=None), retry()),
]


@pytest.mark.parametrize(("body", "read"), GOOD_REQUESTS, ids=lambda value: json.dumps(value)[:60])
def test_a_request_is_read_as_generously_as_the_sdk_reads_it(body: Any, read: Any) -> None:
    params = {name: value for name, value in read["params"].items() if value is not None or name == "result"}
    message = codec.decode_request(ChatKitRequest, json.dumps(body))
    assert exact(codec.encode(message)) == exact(json.dumps({"metadata": {}, **read, "params": params}))


def test_a_run_is_named_by_itself_or_by_its_thread() -> None:
    for operation, asked in (("runs.resume", "resume_run"), ("runs.cancel", "cancel_run")):
        for name in ("run_id", "thread_id"):
            message = codec.decode_request(ChatKitRequest, json.dumps(request(operation, **{name: "x"})))
            assert message.WhichOneof("operation") == asked
            named = {field.name for field, _ in getattr(message, asked).ListFields()}
            assert named == {name}


STARTING_A_RUN = {
    "threads.create": {"input": {"content": [], "attachments": [], "inference_options": {}}},
    "threads.add_user_message": {"thread_id": "t", "input": {"content": []}},
    "threads.add_client_tool_output": {"thread_id": "t", "result": 1},
    "threads.add_structured_input": {"thread_id": "t", "item_id": "i", "input": {"status": "skipped"}},
    "threads.retry_after_item": {"thread_id": "t", "item_id": "i"},
    "threads.custom_action": {"thread_id": "t", "action": {"type": "a"}},
}


@pytest.mark.parametrize(("operation", "params"), STARTING_A_RUN.items())
def test_every_operation_that_starts_a_run_may_have_a_request_id(operation: str, params: dict[str, Any]) -> None:
    for extra, has_one in (({"request_id": NASTY_TEXT}, True), ({"request_id": ""}, True), ({}, False)):
        message = codec.decode_request(ChatKitRequest, json.dumps(request(operation, **params, **extra)))
        asked = getattr(message, str(message.WhichOneof("operation")))
        assert (asked.HasField("request_id"), asked.request_id) == (has_one, extra.get("request_id", ""))


def test_a_request_may_hold_more_than_a_hundred_objects_side_by_side() -> None:
    value = [{"a": [number]} for number in range(200)]
    message = codec.decode_request(ChatKitRequest, tool_output(json.dumps(value)))
    assert json.loads(message.add_client_tool_output.result) == value


def test_the_numbers_of_a_request_keep_their_kind() -> None:
    text = "[1e5,1.0,-0.0,0.1,1180591620717411303424,9007199254740993,1E-7,-0]"
    message = codec.decode_request(ChatKitRequest, tool_output(text))
    assert (
        message.add_client_tool_output.result
        == "[100000.0,1.0,-0.0,0.1,1180591620717411303424,9007199254740993,1e-07,0]"
    )


# What came by gRPC ---------------------------------------------------------------------------------------------------

INPUT = chat_service_pb2.UserMessageInput()
TEXT = item_pb2.UserMessageContent(input_text=item_pb2.UserMessageTextContent(text="a"))
UNKNOWN = item_pb2.UserMessageContent(unknown='{"type":"video"}')
ONE_OF_CONTENT = "missing, expected one of input_text, input_tag"
Action = chat_service_pb2.Action
RunAction = chat_service_pb2.RunActionRequest
CreateThread = chat_service_pb2.CreateThreadRequest
AddToolOutput = chat_service_pb2.AddClientToolOutputRequest
AppendItem = thread_service_pb2.AppendItemRequest
ONE_OF_ITEMS = (
    "missing, expected one of user_message, assistant_message, client_tool_call, widget, generated_image, "
    "structured_input, workflow, task, hidden_context_item, sdk_hidden_context, end_of_turn"
)


def tagged(data: str) -> Message:
    tag = item_pb2.UserMessageTagContent(id="t", text="@t", data=data)
    content = [TEXT, item_pb2.UserMessageContent(input_tag=tag)]
    return CreateThread(input=chat_service_pb2.UserMessageInput(content=content))


def submission(**answers: str) -> Message:
    held = {key: item_pb2.StructuredInputAnswer(values=[value]) for key, value in answers.items()}
    return chat_service_pb2.AddStructuredInputRequest(
        thread_id="t", item_id="i", input=chat_service_pb2.StructuredInputSubmission(answers=held)
    )


BAD_MESSAGES: list[tuple[Message, str, str]] = [
    # missing
    (CreateThread(), "$.input", "missing"),
    (RunAction(thread_id="t"), "$.action", "missing"),
    (AddToolOutput(thread_id="t"), "$.result", "missing"),
    (AddToolOutput(thread_id="t", result=""), "$.result", "missing"),
    (thread_service_pb2.AddFeedbackRequest(thread_id="t", item_ids=["a"]), "$.kind", "missing"),
    (ChatKitRequest(create_thread=CreateThread()), "$.create_thread.input", "missing"),
    (
        CreateThread(input=chat_service_pb2.UserMessageInput(content=[TEXT, item_pb2.UserMessageContent()])),
        "$.input.content[1]",
        ONE_OF_CONTENT,
    ),
    (CreateThread(input=chat_service_pb2.UserMessageInput(content=[UNKNOWN])), "$.input.content[0]", ONE_OF_CONTENT),
    # out of range
    (thread_service_pb2.ListThreadsRequest(limit=-1), "$.limit", "expected 0 or more, got -1"),
    (thread_service_pb2.ListItemsRequest(thread_id="t", limit=-5), "$.limit", "expected 0 or more, got -5"),
    (attachment_service_pb2.CreateAttachmentRequest(size=-1), "$.size", "expected 0 or more, got -1"),
    (run_service_pb2.ResumeRunRequest(run_id="r", after_sequence=-1), "$.after_sequence", "expected 0 or more, got -1"),
    # an item that isn't there, or isn't known
    (AppendItem(thread_id="t"), "$.item", "missing"),
    (AppendItem(thread_id="t", item=item_pb2.ThreadItem()), "$.item", ONE_OF_ITEMS),
    (
        AppendItem(thread_id="t", item=item_pb2.ThreadItem(unknown='{"type":"hologram","id":"i"}')),
        "$.item",
        ONE_OF_ITEMS,
    ),
    (
        AppendItem(thread_id="t", item=item_pb2.ThreadItem(widget=item_pb2.WidgetItem(widget="[]"))),
        "$.item.widget.widget",
        "expected an object, got a list",
    ),
    # NUL in text
    (run_service_pb2.CancelRunRequest(thread_id="a\0"), "$.thread_id", NUL),
    (CreateThread(input=INPUT, request_id="a\0"), "$.request_id", NUL),
    (thread_service_pb2.GetThreadRequest(thread_id="a\0"), "$.thread_id", NUL),
    (
        thread_service_pb2.AddFeedbackRequest(item_ids=["a", "\0"], kind=thread_service_pb2.FEEDBACK_KIND_POSITIVE),
        "$.item_ids[1]",
        NUL,
    ),
    (submission(q="\0"), "$.input.answers.q.values[0]", NUL),
    (submission(**{"q\0": "a"}), '$.input.answers["q\\u0000"]', NUL),
    # JSON that breaks out of its place, or can't be kept
    (AddToolOutput(result='1,"x":2'), "$.result", "not JSON: Extra data at line 1, column 2"),
    (AddToolOutput(result="{}}"), "$.result", "not JSON: Extra data at line 1, column 3"),
    (AddToolOutput(result=" "), "$.result", "not JSON: Expecting value at line 1, column 2"),
    (AddToolOutput(result="NaN"), "$.result", "not JSON: NaN is no JSON number"),
    (AddToolOutput(result="-1e999"), "$.result", "not JSON: a number too large to be read"),
    (AddToolOutput(result="9" * 5000), "$.result", "not JSON: a number with more digits than can be read"),
    (AddToolOutput(result="[" * 5000), "$.result", TOO_DEEP),
    (AddToolOutput(result=r'{"a":["\u0000"]}'), "$.result.a[0]", NUL),
    (AddToolOutput(result=r'{"a":["\ud800"]}'), "$.result.a[0]", LONE_SURROGATE),
    (RunAction(action=Action(type="a", payload='{"b":{"c":1,"c":2}}')), "$.action.payload.b.c", "given twice"),
    (
        RunAction(action=Action(type="a", payload="tru")),
        "$.action.payload",
        "not JSON: Expecting value at line 1, column 1",
    ),
    (tagged("[]"), "$.input.content[1].input_tag.data", "expected an object, got a list"),
    (tagged("null"), "$.input.content[1].input_tag.data", "expected an object, got null"),
    (tagged('{"a":1},{}'), "$.input.content[1].input_tag.data", "not JSON: Extra data at line 1, column 8"),
    (
        ChatKitRequest(get_thread=thread_service_pb2.GetThreadRequest(), metadata="5"),
        "$.metadata",
        "expected an object, got a number",
    ),
]


@pytest.mark.parametrize(("message", "path", "description"), BAD_MESSAGES, ids=lambda value: repr(value)[:60])
def test_a_bad_message_is_refused_with_the_path_of_what_is_wrong(message: Message, path: str, description: str) -> None:
    with pytest.raises(ValidationError) as error:
        codec.check(message)
    (violation,) = error.value.violations
    assert (violation.path, violation.description) == (path, description)


def test_a_message_without_an_operation_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(ValidationError) as error:
        codec.check(ChatKitRequest())
    assert error.value.message.startswith("$: missing, expected one of threads.create, threads.add_user_message, ")


def test_a_required_value_that_the_schema_does_not_know_is_refused() -> None:
    newer = thread_service_pb2.AddFeedbackRequest.FromString(
        thread_service_pb2.AddFeedbackRequest(thread_id="t", item_ids=["a"]).SerializeToString() + b"\x18\x63"
    )
    assert newer.kind == 99
    with pytest.raises(ValidationError, match=r"^\$\.kind: "):
        codec.check(newer)


@pytest.mark.parametrize(
    "message",
    [
        thread_service_pb2.ListThreadsRequest(),
        thread_service_pb2.ListThreadsRequest(limit=0),
        thread_service_pb2.GetThreadRequest(thread_id=""),
        thread_service_pb2.UpdateThreadRequest(thread_id="t", title=""),
        thread_service_pb2.AddFeedbackRequest(thread_id="t", kind=thread_service_pb2.FEEDBACK_KIND_NEGATIVE),
        attachment_service_pb2.CreateAttachmentRequest(name="", size=0, mime_type=""),
        chat_service_pb2.TranscribeRequest(audio=b"\0\xff", mime_type="audio/webm"),
        chat_service_pb2.TranscribeRequest(audio=b"", mime_type=""),
        CreateThread(input=INPUT),
        tagged(""),
        tagged(json.dumps(nasty_json())),
        AddToolOutput(thread_id="t", result="null"),
        AddToolOutput(thread_id="t", result=' {"a": 1} '),
        CreateThread(input=INPUT, request_id=""),
        run_service_pb2.ResumeRunRequest(run_id="r"),
        run_service_pb2.ResumeRunRequest(thread_id="t", after_sequence=2**63 - 1),
        run_service_pb2.CancelRunRequest(thread_id="t"),
        run_service_pb2.AcknowledgeRunRequest(run_id="r"),
        AppendItem(thread_id="t", item=item_pb2.ThreadItem(end_of_turn=item_pb2.EndOfTurnItem())),
        RunAction(thread_id="t", action=Action(type="")),
        RunAction(thread_id="t", action=Action(type="a", payload="")),
        submission(q="a"),
    ],
    ids=lambda message: repr(message)[:60],
)
def test_a_good_message_passes_and_is_json(message: Message) -> None:
    codec.check(message)
    assert isinstance(json.loads(codec.encode(message)), dict)


# What the schema doesn't know ----------------------------------------------------------------------------------------

BASE = {"id": "i", "thread_id": "t", "created_at": "2026-01-31T12:00:00Z"}
NEW_ITEM: dict[str, Any] = {**BASE, "type": "hologram", "beams": [1.0, -0.0, 2**70, {"b": None, "a": NASTY_TEXT}]}
NEW_MEMBER: dict[str, Any] = {**BASE, "type": "end_of_turn", "mood": "glad"}
THREAD: dict[str, Any] = {
    "id": "t",
    "created_at": "2026-01-31T12:00:00Z",
    "status": {"type": "active"},
    "metadata": {},
    "items": {"data": [], "has_more": False},
}


def added(item: Any) -> dict[str, Any]:
    return {"type": "thread.item.added", "item": item}


def workflow(**workflow: Any) -> dict[str, Any]:
    return {**BASE, "type": "workflow", "workflow": {"type": "custom", "tasks": [], "expanded": False, **workflow}}


def said(*annotations: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": "a", "annotations": list(annotations)}
    return {**BASE, "type": "assistant_message", "content": [part]}


def cited(**source: Any) -> dict[str, Any]:
    return {"type": "annotation", "source": {"title": "s", **source}}


NEWER_EVENTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"type": "thread.sparkled", "glitter": nasty_json()}, ["ThreadStreamEvent"]),
    ({"type": "progress_update", "text": "a", "percent": 5.0}, ["ThreadStreamEvent"]),
    ({"type": "notice", "level": "panic", "message": "m"}, ["ThreadStreamEvent"]),
    ({"type": "thread.created", "thread": {**THREAD, "owner": "me"}}, ["ThreadStreamEvent"]),
    ({"type": "thread.created", "thread": {**THREAD, "status": {"type": "frozen", "at": 0}}}, ["ThreadStatus"]),
    ({"type": "thread.created", "thread": {**THREAD, "title": 5}}, ["ThreadStreamEvent"]),
    (added(NEW_ITEM), ["ThreadItem"]),
    (added(NEW_MEMBER), ["ThreadItem"]),
    (added({**BASE, "type": "end_of_turn", "created_at": "yesterday"}), ["ThreadItem"]),
    (added({**BASE, "type": "end_of_turn", "created_at": "0001-01-01T00:00:00+05:00"}), ["ThreadItem"]),
    (added(workflow(tasks=[{"type": "dance"}, {"type": "image", "status_indicator": "none", "x": 1}])), ["Task"] * 2),
    (added(workflow(speed=1)), ["ThreadItem"]),
    (added(workflow(summary={"duration": 2**70})), ["ThreadItem"]),
    (added(workflow(summary={"duration": 1, "unit": "s"})), ["ThreadItem"]),
    (added(said({"type": "footnote"})), ["Annotation"]),
    (added(said({**cited(type="file", filename="f"), "weight": 1})), ["Annotation"]),
    (added(said(cited(type="book", isbn="1"))), ["Source"]),
    (added(said(cited(type="file", filename="f", isbn="1"))), ["Source"]),
    (
        {"type": "thread.item.updated", "item_id": "i", "update": {"type": "item.shaken", "by": 0.1}},
        ["ThreadItemUpdate"],
    ),
    (
        {"type": "thread.item.updated", "item_id": "i", "of": 1, "update": {"type": "item.shaken"}},
        ["ThreadStreamEvent"],
    ),
    ({"note": "no type at all"}, ["ThreadStreamEvent"]),
]


@pytest.mark.parametrize(("value", "carriers"), NEWER_EVENTS, ids=lambda value: json.dumps(value)[:80])
def test_what_is_new_is_carried_both_ways_by_the_nearest_union(value: Any, carriers: list[str]) -> None:
    message = codec.decode(event_pb2.ThreadStreamEvent, value)
    assert [part.partition(":")[0].split(".")[-2] for part in unknown_parts(message)] == carriers
    again = event_pb2.ThreadStreamEvent.FromString(message.SerializeToString())
    assert exact(codec.encode(again)) == exact(json.dumps(value))


def test_a_member_that_is_new_outside_of_any_union_is_left_out_and_nothing_else_is() -> None:
    items = [NEW_ITEM, NEW_MEMBER, {**BASE, "type": "end_of_turn"}, said(cited(type="book", isbn="1"))]
    thread = {**THREAD, "items": {"data": items, "has_more": True}}
    message = codec.decode(thread_service_pb2.GetThreadResponse, {**thread, "owner": "me"})
    assert exact(codec.encode(message)) == exact(json.dumps(thread))


def test_a_page_with_a_new_member_keeps_its_new_items_and_their_nul() -> None:
    page = {"data": [NEW_ITEM, {**BASE, "type": "sdk_hidden_context", "content": "\0"}], "has_more": False}
    message = codec.decode(thread_service_pb2.ListItemsResponse, {**page, "total": 5})
    assert exact(codec.encode(message)) == exact(json.dumps(page))


@pytest.mark.parametrize("item", [NEW_ITEM, NEW_MEMBER], ids=["type", "member"])
def test_a_new_item_is_carried_in_every_answer(item: dict[str, Any]) -> None:
    page = {"data": [item], "has_more": False}
    for message_type, value in (
        (thread_service_pb2.ListItemsResponse, page),
        (thread_service_pb2.GetThreadResponse, {**THREAD, "items": page}),
        (thread_service_pb2.ListThreadsResponse, {"data": [{**THREAD, "items": page}], "has_more": False}),
        (chat_service_pb2.RunSyncActionResponse, {"updated_item": item}),
    ):
        assert exact(codec.encode(codec.decode(message_type, value))) == exact(json.dumps(value))


def test_what_the_assistant_makes_may_hold_nul() -> None:
    for text in ("\0", "a\0b", '"\0\\'):
        free_form = {"nul" + text: [text, {text: text}]}
        for value in (
            {"type": "progress_update", "text": text},
            {"type": "client_effect", "name": text, "data": free_form},
            {"type": "thread.sparkled", "text": text, **free_form},
            added({**BASE, "type": "widget", "widget": {"type": "Card", "children": [{"value": text}] * 200}}),
            added(workflow(tasks=[{"type": "dance", "to": text}])),
        ):
            message = codec.decode(event_pb2.ThreadStreamEvent, value)
            again = event_pb2.ThreadStreamEvent.FromString(message.SerializeToString())
            assert exact(codec.encode(again)) == exact(json.dumps(value))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"type": "progress_update", "text": "\ud800"}, "$.text"),
        ({"type": "client_effect", "name": "a", "data": {"b": ["\ud800"]}}, "$.data.b[0]"),
        (added({**BASE, "type": "end_of_turn", "id": "\ud800"}), "$.item.id"),
    ],
)
def test_what_can_not_be_carried_at_all_is_refused_with_its_path(value: Any, path: str) -> None:
    with pytest.raises(ValidationError) as error:
        codec.decode(event_pb2.ThreadStreamEvent, value)
    assert error.value.message == f"{path}: {LONE_SURROGATE}"


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_a_progress_that_is_no_number_is_written_as_the_null_that_the_sdk_writes(number: float) -> None:
    image = event_pb2.GeneratedImageUpdated(image=item_pb2.GeneratedImage(id="g", url="u"), progress=number)
    update = event_pb2.ThreadItemUpdate(generated_image_updated=image)
    assert codec.encode(update) == '{"type":"generated_image.updated","image":{"id":"g","url":"u"},"progress":null}'


# What is written -----------------------------------------------------------------------------------------------------


def test_the_end_of_a_run_is_told_with_its_state() -> None:
    ended = thread_service_pb2.WatchThreadResponse(cursor="c")
    ended.run_ended.run_id, ended.run_ended.state = "run_1", run_pb2.RUN_STATE_CANCELLED
    assert codec.encode(ended) == '{"type":"run.ended","run_id":"run_1","state":"cancelled","cursor":"c"}'
    stopped = run_service_pb2.CancelRunResponse(run_id="run_1", state=run_pb2.RUN_STATE_CANCELLED)
    assert codec.encode(stopped) == '{"run_id":"run_1","state":"cancelled"}'


def test_where_nothing_ran_there_is_nothing_to_tell() -> None:
    assert codec.encode(run_service_pb2.CancelRunResponse()) == "{}"
    assert codec.encode(run_service_pb2.AcknowledgeRunResponse()) == "{}"


def test_a_batch_that_a_watcher_gets_says_its_state_only_at_the_end() -> None:
    events = [event_pb2.ThreadStreamEvent(progress_update=event_pb2.ProgressUpdateEvent(text="a"))]
    response = thread_service_pb2.WatchThreadResponse(cursor="c")
    response.batch.CopyFrom(run_pb2.EventBatch(run_id="run_1", first_sequence=2**62, events=events))
    written = f'"run_id":"run_1","first_sequence":{2**62},"events":[{{"type":"progress_update","text":"a"}}]'
    assert codec.encode(response) == f'{{"type":"batch",{written},"cursor":"c"}}'
    response.batch.state = run_pb2.RUN_STATE_FAILED
    assert codec.encode(response) == f'{{"type":"batch",{written},"state":"failed","cursor":"c"}}'


def test_an_enum_number_that_the_schema_does_not_know_is_left_out() -> None:
    unknown_level = event_pb2.NoticeEvent(message="m")
    unknown_level.MergeFromString(b"\x08\x63")
    assert unknown_level.level == 99
    event = event_pb2.ThreadStreamEvent(notice=unknown_level)
    assert json.loads(codec.encode(event)) == {"type": "notice", "message": "m"}


def test_an_unspecified_enum_is_left_out() -> None:
    event = event_pb2.ThreadStreamEvent(notice=event_pb2.NoticeEvent(message="m"))
    assert json.loads(codec.encode(event)) == {"type": "notice", "message": "m"}


def test_an_absent_union_is_left_out_of_an_object() -> None:
    event = event_pb2.ThreadStreamEvent(thread_item_done=event_pb2.ThreadItemDoneEvent())
    assert codec.encode(event) == '{"type":"thread.item.done"}'


@pytest.mark.parametrize("message_type", [FloatValue, UInt32Value, UInt64Value])
def test_a_type_that_the_codec_has_no_rule_for_is_refused(message_type: type[Message]) -> None:
    told = rf"^google\.protobuf\.{message_type.__name__}\.value: the codec has no rule for this type$"
    with pytest.raises(TypeError, match=told):
        codec.encode(message_type())
    with pytest.raises(TypeError, match=told):
        codec.decode(message_type, {"value": 1})


texts = st.text(max_size=40) | st.just(NASTY_TEXT) | st.sampled_from(["", "\0", '"', "\\", "\u2028", "😀", "\x7f"])


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(item_id=texts, content_index=st.integers(-(2**31), 2**31 - 1), delta=texts)
def test_the_short_cut_for_a_text_delta_writes_what_the_codec_writes(
    item_id: str, content_index: int, delta: str
) -> None:
    event = event_pb2.ThreadStreamEvent()
    text_delta.write_text_delta(event, item_id, content_index, delta)
    assert text_delta.encode_event(event) == codec.encode(event)
    assert codec.decode(event_pb2.ThreadStreamEvent, json.loads(codec.encode(event))) == event


def test_the_short_cut_leaves_other_events_to_the_codec() -> None:
    for value in ({"type": "progress_update", "text": "a"}, added(NEW_ITEM), {"type": "thread.sparkled"}):
        event = codec.decode(event_pb2.ThreadStreamEvent, value)
        assert text_delta.encode_event(event) == codec.encode(event)


def test_a_lone_surrogate_in_a_text_delta_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        text_delta.write_text_delta(event_pb2.ThreadStreamEvent(), "i", 0, "\ud800")


# Times ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_newfoundland(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where the clocks are half an hour off everybody else's."""
    monkeypatch.setenv("TZ", "America/St_Johns")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("read", "seconds", "nanos", "written"),
    [
        ("1970-01-01T00:00:00Z", 0, 0, "1970-01-01T00:00:00Z"),
        ("2026-01-31T12:00:00.120450Z", 1769860800, 120_450_000, "2026-01-31T12:00:00.120450Z"),
        ("2026-01-31T12:00:00.000001+00:00", 1769860800, 1000, "2026-01-31T12:00:00.000001Z"),
        ("2026-01-31T12:00:00+05:30", 1769841000, 0, "2026-01-31T06:30:00Z"),
        ("1969-12-31T23:59:59.000001Z", -1, 1000, "1969-12-31T23:59:59.000001Z"),
        ("1969-12-31T23:59:58.999999Z", -2, 999_999_000, "1969-12-31T23:59:58.999999Z"),
        ("0001-01-01T00:00:00Z", -62135596800, 0, "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.999999Z", 253402300799, 999_999_000, "9999-12-31T23:59:59.999999Z"),
        # Without an offset a time is local, in winter and in summer.
        ("2026-01-31T12:00:00", 1769873400, 0, "2026-01-31T15:30:00Z"),
        ("2026-07-01T12:00:00.5", 1782916200, 500_000_000, "2026-07-01T14:30:00.500000Z"),
    ],
)
def test_a_time_is_the_same_moment_on_both_sides(
    in_newfoundland: None, read: str, seconds: int, nanos: int, written: str
) -> None:
    item = codec.decode(item_pb2.ThreadItem, {**BASE, "type": "end_of_turn", "created_at": read})
    assert item.end_of_turn.created_at == Timestamp(seconds=seconds, nanos=nanos)
    assert json.loads(codec.encode(item))["created_at"] == written


@pytest.mark.parametrize(
    "text", ["yesterday", "", "9999-12-31T23:59:59", "0001-01-01T00:00:00+05:00", "2026-13-01T00:00:00Z"]
)
def test_a_time_that_no_timestamp_can_hold_is_carried_as_it_is(in_newfoundland: None, text: str) -> None:
    value = {**BASE, "type": "end_of_turn", "created_at": text}
    item = codec.decode(item_pb2.ThreadItem, value)
    assert item.WhichOneof("item") == "unknown"
    assert json.loads(codec.encode(item)) == value
