"""What can go wrong, named once: reason <-> gRPC status <-> HTTP status, and the exceptions that carry it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.error_reason_pb2 import ErrorReason

DOMAIN = "chatkit-grpc"
DETAILS_KEY = "grpc-status-details-bin"
"""The trailing metadata that carries a google.rpc.Status, as all gRPC libraries name it."""

_REASON_PREFIX = "ERROR_REASON_"
_MAX_VIOLATIONS = 5
_WINDOW = "window_seconds"


_REASON_OF_BARE_STATUS: Mapping[grpc.StatusCode, ErrorReason.ValueType] = {
    # A status without our details was made by gRPC itself: by the library at either end, or by a proxy between them.
    grpc.StatusCode.UNAUTHENTICATED: reasons.ERROR_REASON_UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: reasons.ERROR_REASON_PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT: reasons.ERROR_REASON_INVALID_REQUEST,
    grpc.StatusCode.UNIMPLEMENTED: reasons.ERROR_REASON_UNSUPPORTED,
    grpc.StatusCode.FAILED_PRECONDITION: reasons.ERROR_REASON_FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED: reasons.ERROR_REASON_REQUEST_TOO_LARGE,
    grpc.StatusCode.UNAVAILABLE: reasons.ERROR_REASON_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: reasons.ERROR_REASON_DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: reasons.ERROR_REASON_CANCELLED,
}

_CODE_BY_NUMBER: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing that is wrong with a request.

    path: where, as a JSON path. Sample: "$.params.input.content[0].type".
    description: what is wrong and what was expected. Sample: 'unknown value "vidoe"'.
    """

    path: str
    description: str

    def __str__(self) -> str:
        return f"{self.path}: {self.description}"


@dataclass(frozen=True, slots=True)
class Quota:
    """What a caller has used up, or has too much of at once.

    name: what is counted. Sample: "runs".
    limit: how many he may have.
    window_seconds: in how many seconds; None where it is at once.
    """

    name: str
    limit: int
    window_seconds: int | None = None

    def __str__(self) -> str:
        return f"{self.limit:,} {self.name.replace('_', ' ')}" + (
            "" if self.window_seconds is None else f" in {self.window_seconds:,} s"
        )


class ChatKitError(Exception):
    """What a call fails with.

    message: a sentence for the person who made the call; it holds no text of a conversation and no secret.
    metadata: what a machine may want to know, as in google.rpc.ErrorInfo.
    violations: what is wrong with the request, where it is the request that is wrong.
    retry_after: seconds after which the same call may succeed, where that is known.
    quota: what the caller has used up, where it is that.
    """

    default_reason: ClassVar[ErrorReason.ValueType] = reasons.ERROR_REASON_INTERNAL

    def __init__(
        self,
        message: str,
        *,
        reason: ErrorReason.ValueType | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        quota: Quota | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = self.default_reason if reason is None else reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.quota = quota

    @property
    def code(self) -> str:
        """The reason as clients see it. Sample: "THREAD_NOT_FOUND"."""
        return ErrorReason.Name(self.reason).removeprefix(_REASON_PREFIX)

    @property
    def grpc_status(self) -> grpc.StatusCode:
        """The gRPC status of the reason."""
        return TABLE[self.reason].grpc_status

    @property
    def http_status(self) -> int:
        """The HTTP status of the reason."""
        return TABLE[self.reason].http_status

    def to_status(self) -> status_pb2.Status:
        """The error as a google.rpc.Status: ErrorInfo always, the other details where there is something.

        Long texts are cut, so that it fits into trailing metadata.
        """
        number: int = self.grpc_status.value[0]
        status = status_pb2.Status(code=number, message=_cut(self.message, 500))
        metadata = {key: _cut(value, 200) for key, value in self.metadata.items()}
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.code, domain=DOMAIN, metadata=metadata))
        if self.violations:
            bad_request = error_details_pb2.BadRequest()
            for violation in self.violations[:_MAX_VIOLATIONS]:
                path, description = _cut(violation.path, 300), _cut(violation.description, 300)
                bad_request.field_violations.add(field=path, description=description)
            status.details.add().Pack(bad_request)
        if self.quota is not None:
            status.details.add().Pack(_quota_failure(self.quota))
        if self.retry_after is not None:
            delay = Duration()
            delay.FromMilliseconds(math.ceil(self.retry_after * 1000))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return status


def _quota_failure(quota: Quota) -> error_details_pb2.QuotaFailure:
    failure = error_details_pb2.QuotaFailure()
    window = {} if quota.window_seconds is None else {_WINDOW: str(quota.window_seconds)}
    failure.violations.add(
        subject="user",
        description=str(quota),
        api_service=DOMAIN,
        quota_id=quota.name,
        quota_value=quota.limit,
        quota_dimensions=window,
    )
    return failure


def _quota_of(failure: error_details_pb2.QuotaFailure) -> Quota | None:
    for violation in failure.violations:
        window = violation.quota_dimensions.get(_WINDOW, "")
        return Quota(violation.quota_id, violation.quota_value, int(window) if window.isdecimal() else None)
    return None


def _cut(text: str, limit: int) -> str:
    """The beginning of a text, counted in bytes: what an error says must fit into gRPC's trailers, which hold 8 KiB."""
    data = text.encode(errors="replace")
    kept = data[:limit].decode(errors="ignore")
    return kept if len(data) <= limit else f"{kept}…"


class AuthenticationError(ChatKitError):
    """Nobody is logged in, or the credentials are no good."""

    default_reason = reasons.ERROR_REASON_UNAUTHENTICATED


class PermissionDeniedError(ChatKitError):
    """The caller is known, and may not do this."""

    default_reason = reasons.ERROR_REASON_PERMISSION_DENIED


class ValidationError(ChatKitError):
    """The request is not what was asked for, or asks for something that can't be done now."""

    default_reason = reasons.ERROR_REASON_INVALID_REQUEST

    @classmethod
    def at(cls, path: str, description: str) -> ValidationError:
        """The member at a JSON path is wrong. Sample: at("$.params.limit", "expected 0 or more, got -1")."""
        violation = FieldViolation(path, description)
        return cls(str(violation), metadata={"path": path}, violations=[violation])


class NotFoundError(ChatKitError):
    """What was asked for isn't there, or is someone else's: the caller can't tell which."""

    default_reason = reasons.ERROR_REASON_THREAD_NOT_FOUND


class ConflictError(ChatKitError):
    """What else is on the thread, or happens on it, doesn't allow what was asked for."""

    default_reason = reasons.ERROR_REASON_RUN_CONFLICT


class LimitError(ChatKitError):
    """The caller asks for more than he may have."""

    default_reason = reasons.ERROR_REASON_RATE_LIMITED


class DatabaseError(ChatKitError):
    """The database failed, or can't be reached."""

    default_reason = reasons.ERROR_REASON_DATABASE_FAILED


class AgentError(ChatKitError):
    """The assistant's code or its model failed."""

    default_reason = reasons.ERROR_REASON_AGENT_FAILED


class UnavailableError(ChatKitError):
    """The server can't be reached, is going down, or took too long."""

    default_reason = reasons.ERROR_REASON_UNAVAILABLE


class Row(NamedTuple):
    """One row of the error table."""

    grpc_status: grpc.StatusCode
    http_status: int
    error_class: type[ChatKitError]


TABLE: Mapping[ErrorReason.ValueType, Row] = {
    reasons.ERROR_REASON_UNAUTHENTICATED: Row(grpc.StatusCode.UNAUTHENTICATED, 401, AuthenticationError),
    reasons.ERROR_REASON_INVALID_REQUEST: Row(grpc.StatusCode.INVALID_ARGUMENT, 400, ValidationError),
    reasons.ERROR_REASON_UNSUPPORTED: Row(grpc.StatusCode.UNIMPLEMENTED, 400, ValidationError),
    reasons.ERROR_REASON_THREAD_NOT_FOUND: Row(grpc.StatusCode.NOT_FOUND, 404, NotFoundError),
    reasons.ERROR_REASON_ITEM_NOT_FOUND: Row(grpc.StatusCode.NOT_FOUND, 404, NotFoundError),
    reasons.ERROR_REASON_ATTACHMENT_NOT_FOUND: Row(grpc.StatusCode.NOT_FOUND, 404, NotFoundError),
    reasons.ERROR_REASON_UNKNOWN_CURSOR: Row(grpc.StatusCode.INVALID_ARGUMENT, 400, ValidationError),
    reasons.ERROR_REASON_FAILED_PRECONDITION: Row(grpc.StatusCode.FAILED_PRECONDITION, 409, ValidationError),
    reasons.ERROR_REASON_REQUEST_TOO_LARGE: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, 413, LimitError),
    reasons.ERROR_REASON_RATE_LIMITED: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, LimitError),
    reasons.ERROR_REASON_AGENT_FAILED: Row(grpc.StatusCode.INTERNAL, 500, AgentError),
    reasons.ERROR_REASON_DATABASE_FAILED: Row(grpc.StatusCode.INTERNAL, 500, DatabaseError),
    reasons.ERROR_REASON_DATABASE_UNAVAILABLE: Row(grpc.StatusCode.UNAVAILABLE, 503, DatabaseError),
    reasons.ERROR_REASON_UNAVAILABLE: Row(grpc.StatusCode.UNAVAILABLE, 503, UnavailableError),
    reasons.ERROR_REASON_DEADLINE_EXCEEDED: Row(grpc.StatusCode.DEADLINE_EXCEEDED, 504, UnavailableError),
    reasons.ERROR_REASON_CANCELLED: Row(grpc.StatusCode.CANCELLED, 499, UnavailableError),
    reasons.ERROR_REASON_INTERNAL: Row(grpc.StatusCode.INTERNAL, 500, ChatKitError),
    reasons.ERROR_REASON_RUN_NOT_FOUND: Row(grpc.StatusCode.NOT_FOUND, 404, NotFoundError),
    reasons.ERROR_REASON_RUN_CONFLICT: Row(grpc.StatusCode.ABORTED, 409, ConflictError),
    reasons.ERROR_REASON_RUN_INTERRUPTED: Row(grpc.StatusCode.UNAVAILABLE, 503, UnavailableError),
    reasons.ERROR_REASON_THREAD_LOCKED: Row(grpc.StatusCode.FAILED_PRECONDITION, 409, ConflictError),
    reasons.ERROR_REASON_THREAD_CLOSED: Row(grpc.StatusCode.FAILED_PRECONDITION, 409, ConflictError),
    reasons.ERROR_REASON_REQUEST_ID_REUSED: Row(grpc.StatusCode.INVALID_ARGUMENT, 422, ValidationError),
    reasons.ERROR_REASON_EVENTS_EXPIRED: Row(grpc.StatusCode.OUT_OF_RANGE, 410, NotFoundError),
    reasons.ERROR_REASON_PERMISSION_DENIED: Row(grpc.StatusCode.PERMISSION_DENIED, 403, PermissionDeniedError),
    reasons.ERROR_REASON_OVERLOADED: Row(grpc.StatusCode.UNAVAILABLE, 503, UnavailableError),
    reasons.ERROR_REASON_ITEM_EXISTS: Row(grpc.StatusCode.ALREADY_EXISTS, 409, ConflictError),
    reasons.ERROR_REASON_MODEL_FAILED: Row(grpc.StatusCode.INTERNAL, 502, AgentError),
    reasons.ERROR_REASON_MODEL_REFUSED: Row(grpc.StatusCode.FAILED_PRECONDITION, 422, AgentError),
    reasons.ERROR_REASON_MODEL_TIMEOUT: Row(grpc.StatusCode.DEADLINE_EXCEEDED, 504, AgentError),
    reasons.ERROR_REASON_MODEL_BUSY: Row(grpc.StatusCode.UNAVAILABLE, 503, AgentError),
    reasons.ERROR_REASON_GUARDRAIL_TRIPPED: Row(grpc.StatusCode.FAILED_PRECONDITION, 422, AgentError),
    reasons.ERROR_REASON_TRANSCRIPTION_FAILED: Row(grpc.StatusCode.INTERNAL, 424, AgentError),
    reasons.ERROR_REASON_TRANSCRIPTION_BUSY: Row(grpc.StatusCode.UNAVAILABLE, 503, UnavailableError),
    reasons.ERROR_REASON_ATTACHMENT_NOT_UPLOADED: Row(grpc.StatusCode.FAILED_PRECONDITION, 409, ConflictError),
    reasons.ERROR_REASON_ATTACHMENT_UPLOADED: Row(grpc.StatusCode.ALREADY_EXISTS, 409, ConflictError),
    reasons.ERROR_REASON_UPLOAD_CONFLICT: Row(grpc.StatusCode.ABORTED, 409, ConflictError),
    reasons.ERROR_REASON_ATTACHMENT_TOO_LARGE: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, 413, LimitError),
    reasons.ERROR_REASON_ATTACHMENT_SIZE: Row(grpc.StatusCode.INVALID_ARGUMENT, 400, ValidationError),
    reasons.ERROR_REASON_ATTACHMENT_TYPE: Row(grpc.StatusCode.INVALID_ARGUMENT, 415, ValidationError),
    reasons.ERROR_REASON_ATTACHMENT_UNREADABLE: Row(grpc.StatusCode.INVALID_ARGUMENT, 422, ValidationError),
    reasons.ERROR_REASON_ATTACHMENT_QUOTA: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, 413, LimitError),
    reasons.ERROR_REASON_ATTACHMENT_STORE_FAILED: Row(grpc.StatusCode.UNAVAILABLE, 503, UnavailableError),
}


def from_status(status: status_pb2.Status) -> ChatKitError:
    """The error that a google.rpc.Status tells of, whoever made it."""
    code = _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    reason = _REASON_OF_BARE_STATUS.get(code, reasons.ERROR_REASON_INTERNAL)
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_after: float | None = None
    quota: Quota | None = None
    info, bad_request, retry, failure = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.QuotaFailure(),
    )
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            # A server newer than this client may know more reasons: then the status alone decides.
            known = ErrorReason.DESCRIPTOR.values_by_name.get(_REASON_PREFIX + info.reason)
            if known is not None and known.number in TABLE:
                reason = ErrorReason.Value(known.name)
            metadata = dict(info.metadata)
        elif detail.Unpack(bad_request):
            violations = [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
        elif detail.Unpack(failure):
            quota = _quota_of(failure)
    return TABLE[reason].error_class(
        status.message, reason=reason, metadata=metadata, violations=violations, retry_after=retry_after, quota=quota
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> ChatKitError:
    """The error that a failed call tells of: our own with all its details, or one that gRPC made on the way."""
    for key, value in error.trailing_metadata():
        if key == DETAILS_KEY and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):  # somebody else's bytes: then the code alone decides
                return from_status(status_pb2.Status.FromString(value))
    number: int = error.code().value[0]
    return from_status(status_pb2.Status(code=number, message=_message_of_bare_status(error.code())))


def _message_of_bare_status(code: grpc.StatusCode) -> str:
    """A sentence in place of gRPC's own, which names addresses and internals."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return "The chat server can't be reached."
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "The chat server took too long to answer."
    return f"The chat server failed ({code_pb2.Code.Name(code.value[0])})."
