"""What callers are told where an attachment is not as it must be."""

from __future__ import annotations

from chatkit_grpc.errors import ConflictError, LimitError, NotFoundError, Quota, UnavailableError, ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server.text_repair import whole

_QUOTED_LENGTH = 200


def not_uploaded(attachment_id: str) -> ConflictError:
    """Its bytes aren't there."""
    return ConflictError(
        "The attachment has not been uploaded yet; upload it first.",
        reason=reasons.ERROR_REASON_ATTACHMENT_NOT_UPLOADED,
        metadata={"attachment_id": attachment_id},
    )


def uploaded_already(attachment_id: str) -> ConflictError:
    """Its bytes are there."""
    return ConflictError(
        "The attachment has been uploaded already; its bytes are never replaced.",
        reason=reasons.ERROR_REASON_ATTACHMENT_UPLOADED,
        metadata={"attachment_id": attachment_id},
    )


def overtaken(attachment_id: str) -> ConflictError:
    """This upload isn't the last one any more, or what it is for was deleted."""
    return ConflictError(
        "The upload was given up: the attachment was deleted, or another upload of it was begun.",
        reason=reasons.ERROR_REASON_UPLOAD_CONFLICT,
        metadata={"attachment_id": attachment_id},
    )


def too_large(limit: int) -> LimitError:
    """The file has more bytes than one may have."""
    return LimitError(
        f"The file is too large: expected at most {limit:,} bytes.",
        reason=reasons.ERROR_REASON_ATTACHMENT_TOO_LARGE,
        metadata={"limit_bytes": str(limit)},
    )


def other_size(expected: int, found: str) -> ValidationError:
    """The file has another size than was announced. found: in words."""
    return ValidationError(
        f"The file is not as large as was announced: expected {expected:,} bytes, got {found}.",
        reason=reasons.ERROR_REASON_ATTACHMENT_SIZE,
        metadata={"expected_bytes": str(expected)},
    )


def empty() -> ValidationError:
    """The file has no bytes."""
    return ValidationError(
        "The file is empty: expected at least 1 byte.",
        reason=reasons.ERROR_REASON_ATTACHMENT_SIZE,
        metadata={"expected_bytes": "1"},
    )


def type_not_allowed(mime_type: str, allowed: tuple[str, ...]) -> ValidationError:
    """Files of that type aren't taken."""
    shown = _quoted(mime_type)
    return ValidationError(
        f"Files of the type {shown} aren't taken: expected one of {', '.join(allowed)}.",
        reason=reasons.ERROR_REASON_ATTACHMENT_TYPE,
        metadata={"found": shown, "allowed": ", ".join(allowed)},
    )


def type_mismatch(declared: str, found: str) -> ValidationError:
    """The bytes say something else than the caller."""
    shown = _quoted(declared)
    return ValidationError(
        f"The file is not what it is said to be: expected {shown}, found {found}.",
        reason=reasons.ERROR_REASON_ATTACHMENT_TYPE,
        metadata={"declared": shown, "found": found},
    )


def unreadable(why: str) -> ValidationError:
    """A picture that isn't one, or one that nobody should unpack. why: a sentence's end."""
    return ValidationError(f"The picture {why}.", reason=reasons.ERROR_REASON_ATTACHMENT_UNREADABLE)


def too_many_files(most_files: int, most_bytes: int) -> LimitError:
    """The user keeps as much as he may."""
    limits = [f"{most_files:,} files"] * bool(most_files) + [f"{most_bytes:,} bytes"] * bool(most_bytes)
    return LimitError(
        f"There is no room for this file: expected at most {' and '.join(limits)} altogether. Delete some first.",
        reason=reasons.ERROR_REASON_ATTACHMENT_QUOTA,
        quota=Quota("attachments", most_files) if most_files else None,
    )


def no_preview() -> NotFoundError:
    """It isn't a picture."""
    return NotFoundError("There is no preview of this attachment.", reason=reasons.ERROR_REASON_ATTACHMENT_NOT_FOUND)


def store_failed() -> UnavailableError:
    """S3 doesn't do what it is asked for."""
    return UnavailableError(
        "The store of attachments can't be reached, or failed.", reason=reasons.ERROR_REASON_ATTACHMENT_STORE_FAILED
    )


def _quoted(text: str) -> str:
    return str(whole(text[:_QUOTED_LENGTH]))
