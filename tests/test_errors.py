"""The error table, complete and as the schema's comments say, and errors that survive the way through a gRPC status."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import chatkit_grpc
import grpc
import pytest
from chatkit_grpc import errors
from chatkit_grpc.errors import TABLE, ChatKitError, FieldViolation, Quota, from_rpc_error, from_status
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.error_reason_pb2 import ErrorReason
from google.rpc import error_details_pb2, status_pb2

PROTO = Path(chatkit_grpc.__file__).with_name("v1") / "error_reason.proto"
ALL_REASONS = [number for number in ErrorReason.values() if number != reasons.ERROR_REASON_UNSPECIFIED]
each_reason = pytest.mark.parametrize("reason", ALL_REASONS, ids=ErrorReason.Name)


def status_of(code: grpc.StatusCode, reason: str, domain: str = errors.DOMAIN, **metadata: str) -> status_pb2.Status:
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message="m")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata))
    return status


def details_of(status: status_pb2.Status) -> list[Any]:
    return [detail.TypeName().removeprefix("google.rpc.") for detail in status.details]


def documented() -> dict[str, tuple[str, str]]:
    """What the comments of error_reason.proto say: name -> comment and sample."""
    text = PROTO.read_text(encoding="utf-8")
    values = re.findall(r"((?:  // .*\n)+)  (ERROR_REASON_\w+) = \d+;", text)
    commented = {name: re.sub(r"\n? *// ", " ", comment) for comment, name in values}
    return {
        name: (comment.partition("Sample: ")[0], comment.partition("Sample: ")[2])
        for name, comment in commented.items()
    }


def test_a_quota_comes_back_from_a_status_as_it_was() -> None:
    for quota in (Quota("runs", 10, 60), Quota("active_runs", 5), None):
        assert from_status(errors.LimitError("m", quota=quota).to_status()).quota == quota
    assert [str(quota) for quota in (Quota("runs", 1000, 60), Quota("active_runs", 5))] == [
        "1,000 runs in 60 s",
        "5 active runs",
    ]


def test_every_reason_but_unspecified_has_a_row() -> None:
    assert sorted(TABLE) == sorted(ALL_REASONS)


@each_reason
def test_the_statuses_of_a_reason_are_those_of_its_comment(reason: ErrorReason.ValueType) -> None:
    comment, _ = documented()[ErrorReason.Name(reason)]
    ((grpc_status, http_status),) = re.findall(r"\b([A-Z]+(?:_[A-Z]+)*), (\d{3})\b", comment)
    assert TABLE[reason].grpc_status == grpc.StatusCode[grpc_status]
    assert TABLE[reason].http_status == int(http_status)


@each_reason
def test_the_sample_of_a_reason_is_its_own(reason: ErrorReason.ValueType) -> None:
    _, sample = documented()[ErrorReason.Name(reason)]
    info = json.loads(sample)
    assert set(info) == {"reason", "domain", "metadata"}
    assert (info["reason"], info["domain"]) == (ChatKitError("", reason=reason).code, errors.DOMAIN)
    assert all(isinstance(value, str) for value in info["metadata"].values())


@each_reason
def test_an_error_comes_back_from_its_status_as_it_was(reason: ErrorReason.ValueType) -> None:
    violations = [FieldViolation("$.params.limit", "missing"), FieldViolation("$", "a 😀")]
    error = ChatKitError("It failed. 😀", reason=reason, metadata={"a": "b"}, violations=violations, retry_after=1.5)
    status = status_pb2.Status.FromString(error.to_status().SerializeToString())
    assert status.code == error.grpc_status.value[0]
    assert details_of(status) == ["ErrorInfo", "BadRequest", "RetryInfo"]
    again = from_status(status)
    assert (again.reason, again.message, again.metadata) == (reason, "It failed. 😀", {"a": "b"})
    assert (again.violations, again.retry_after) == (tuple(violations), 1.5)
    assert (again.grpc_status, again.http_status, again.code) == (error.grpc_status, error.http_status, error.code)
    assert str(again) == "It failed. 😀"


@each_reason
def test_a_bare_error_carries_its_reason_and_nothing_else(reason: ErrorReason.ValueType) -> None:
    status = ChatKitError("m", reason=reason).to_status()
    assert details_of(status) == ["ErrorInfo"]
    again = from_status(status)
    assert (again.reason, again.metadata, again.violations, again.retry_after) == (reason, {}, (), None)


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "é😀" * 50_000, "\ud800" * 100_000], ids=["ASCII", "emoji", "surrogates"]
)
def test_an_error_fits_into_the_trailers_however_long_its_texts_are(text: str) -> None:
    violations = [FieldViolation(text, text)] * 1000
    error = errors.ValidationError(text, metadata={"path": text}, violations=violations, retry_after=1)
    status = error.to_status()
    # gRPC sends the message a second time, percent-encoded, and the details in base64.
    assert len(quote(status.message)) + len(base64.b64encode(status.SerializeToString())) < 7 * 1024
    again = from_status(status)
    assert again.message.endswith("…")
    assert again.metadata["path"].endswith("…")
    assert all(v.path.endswith("…") and v.description.endswith("…") for v in again.violations)


def test_a_text_that_is_just_short_enough_is_not_cut() -> None:
    violation = FieldViolation("p" * 300, "d" * 300)
    error = errors.ValidationError("m" * 500, metadata={"a": "v" * 200}, violations=[violation])
    again = from_status(error.to_status())
    assert (again.message, again.metadata, again.violations) == ("m" * 500, {"a": "v" * 200}, (violation,))
    longer = from_status(errors.ValidationError("m" * 501).to_status())
    assert longer.message == "m" * 500 + "…"


@each_reason
def test_an_error_comes_back_as_a_class_that_says_what_kind_it_is(reason: ErrorReason.ValueType) -> None:
    again = from_status(ChatKitError("m", reason=reason).to_status())
    assert (type(again) is ChatKitError) == (reason == reasons.ERROR_REASON_INTERNAL)


@pytest.mark.parametrize("error_class", ChatKitError.__subclasses__())
def test_a_class_stands_for_a_reason_and_comes_back_as_itself(error_class: type[ChatKitError]) -> None:
    error = error_class("m")
    assert error.reason == error_class.default_reason
    assert type(from_status(error.to_status())) is error_class


@pytest.mark.parametrize(("given", "read"), [(0, 0.0), (1.5, 1.5), (0.0001, 0.001), (3600, 3600.0)])
def test_a_wait_is_never_made_shorter(given: float, read: float) -> None:
    status = errors.LimitError("m", retry_after=given).to_status()
    assert details_of(status) == ["ErrorInfo", "RetryInfo"]
    assert from_status(status).retry_after == read


def test_a_validation_error_names_the_path_three_times_over() -> None:
    error = errors.ValidationError.at("$.params.limit", "expected 0 or more, got -1")
    again = from_status(error.to_status())
    assert type(again) is errors.ValidationError
    assert again.message == "$.params.limit: expected 0 or more, got -1"
    assert again.metadata == {"path": "$.params.limit"}
    assert again.violations == (FieldViolation("$.params.limit", "expected 0 or more, got -1"),)


def test_a_reason_of_a_newer_server_is_told_by_its_status_and_keeps_its_metadata() -> None:
    error = from_status(status_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_TOKENS", left="0"))
    assert (error.reason, error.http_status) == (reasons.ERROR_REASON_REQUEST_TOO_LARGE, 413)
    assert error.metadata == {"left": "0"}
    unheard_of = from_status(status_of(grpc.StatusCode.DATA_LOSS, "DISK_ATE_IT"))
    assert (unheard_of.reason, unheard_of.http_status) == (reasons.ERROR_REASON_INTERNAL, 500)


@pytest.mark.parametrize("name", ["UNSPECIFIED", ""])
def test_a_reason_that_nobody_may_send_is_told_by_its_status(name: str) -> None:
    error = from_status(status_of(grpc.StatusCode.UNAVAILABLE, name))
    assert (error.reason, error.http_status) == (reasons.ERROR_REASON_UNAVAILABLE, 503)


def test_the_details_of_another_domain_count_for_nothing() -> None:
    error = from_status(status_of(grpc.StatusCode.UNAVAILABLE, "THREAD_NOT_FOUND", "proxy.example.com", a="b"))
    assert (error.reason, error.metadata) == (reasons.ERROR_REASON_UNAVAILABLE, {})
    assert type(error) is errors.UnavailableError


@pytest.mark.parametrize(
    ("code", "http_status"),
    [
        (grpc.StatusCode.CANCELLED, 499),
        (grpc.StatusCode.UNKNOWN, 500),
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
        (grpc.StatusCode.NOT_FOUND, 500),
        (grpc.StatusCode.ALREADY_EXISTS, 500),
        (grpc.StatusCode.PERMISSION_DENIED, 403),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 413),
        (grpc.StatusCode.FAILED_PRECONDITION, 409),
        (grpc.StatusCode.ABORTED, 500),
        (grpc.StatusCode.OUT_OF_RANGE, 500),
        (grpc.StatusCode.UNIMPLEMENTED, 400),
        (grpc.StatusCode.INTERNAL, 500),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.DATA_LOSS, 500),
        (grpc.StatusCode.UNAUTHENTICATED, 401),
    ],
)
def test_a_status_without_details_is_told_by_its_code(code: grpc.StatusCode, http_status: int) -> None:
    number: int = code.value[0]
    assert from_status(status_pb2.Status(code=number, message="m")).http_status == http_status


def test_a_status_code_that_grpc_does_not_have_is_a_defect() -> None:
    assert from_status(status_pb2.Status(code=4711, message="m")).reason == reasons.ERROR_REASON_INTERNAL


def test_a_detail_that_nobody_knows_is_passed_over() -> None:
    status = errors.NotFoundError("m").to_status()
    status.details.add().Pack(error_details_pb2.DebugInfo(detail="secret"))
    status.details.add(type_url="type.example.com/Unheard", value=b"\xff")
    assert from_status(status).reason == reasons.ERROR_REASON_THREAD_NOT_FOUND


def rpc_error(code: grpc.StatusCode, trailers: dict[str, bytes | str], details: str = "") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers.items()), details)


def test_a_failed_call_tells_our_own_error_with_its_details() -> None:
    error = errors.LimitError("Slow down.", retry_after=2)
    trailers: dict[str, bytes | str] = {"x": "y", errors.DETAILS_KEY: error.to_status().SerializeToString()}
    again = from_rpc_error(rpc_error(error.grpc_status, trailers, "Slow down."))
    assert (type(again), again.message, again.retry_after) == (errors.LimitError, "Slow down.", 2.0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (grpc.StatusCode.UNAVAILABLE, "The chat server can't be reached."),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "The chat server took too long to answer."),
        (grpc.StatusCode.INTERNAL, "The chat server failed (INTERNAL)."),
        (grpc.StatusCode.UNKNOWN, "The chat server failed (UNKNOWN)."),
    ],
)
def test_an_error_that_grpc_made_tells_no_address(code: grpc.StatusCode, message: str) -> None:
    error = from_rpc_error(rpc_error(code, {}, "failed to connect to ipv4:10.0.0.7:50051"))
    assert error.message == message


def test_details_that_are_not_a_status_leave_the_call_told_by_its_code() -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, {errors.DETAILS_KEY: b"\xff\xff"}))
    assert error.reason == reasons.ERROR_REASON_UNAVAILABLE
