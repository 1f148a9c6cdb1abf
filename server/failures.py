"""Whatever goes wrong while a call is served, as one of our errors."""

from __future__ import annotations

import logging
import traceback
from typing import Any, NoReturn

import grpc
from chatkit.errors import CustomStreamError
from chatkit.store import NotFoundError as SDKNotFoundError
from chatkit_grpc.errors import DETAILS_KEY, AgentError, ChatKitError, NotFoundError, ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server import sdk

log = logging.getLogger(__name__)


def translate(error: Exception) -> ChatKitError:
    """The error that the caller is told. What nobody foresaw is logged here, and told without its words."""
    if isinstance(error, ChatKitError):
        return error
    if isinstance(error, SDKNotFoundError):
        return NotFoundError("No such thread, item or attachment.")
    if isinstance(error, CustomStreamError):
        return AgentError(error.message, reason=getattr(error, "reason", None))
    if isinstance(error, NotImplementedError):
        # The SDK's word for what an assistant leaves out; a bug may say it too, so the log tells where it came from.
        log.info("the assistant doesn't do that: %s", describe(error))
        return ValidationError("This assistant doesn't do that.", reason=reasons.ERROR_REASON_UNSUPPORTED)
    if sdk.is_refusal(error):
        return ValidationError(str(error), reason=reasons.ERROR_REASON_FAILED_PRECONDITION)
    log.error("the assistant failed: %s", describe(error))
    return AgentError("The assistant failed.")


async def abort(rpc: str, call: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """End a call with the status of what went wrong."""
    failure = translate(error)
    # Strangers come as often as they like.
    level = logging.DEBUG if failure.reason == reasons.ERROR_REASON_UNAUTHENTICATED else logging.INFO
    log.log(level, "%s failed: %s", rpc, failure.code)
    status = failure.to_status()
    details = ((DETAILS_KEY, status.SerializeToString()),)
    await call.abort(failure.grpc_status, status.message, trailing_metadata=details)


def describe(error: BaseException) -> str:
    """What kind of error it is and where it came from, without its message, which may quote a conversation.

    Sample: "KeyError" and, on the lines below, the traceback.
    """
    return "\n".join([type(error).__qualname__, *traceback.format_tb(error.__traceback__)]).rstrip()


def keep_words_out_of_the_log() -> None:
    """Let the SDK's log tell of errors as ours does: it would print their messages, which may quote a conversation."""
    logging.getLogger("chatkit").addFilter(_without_words)
    # What a task failed with that nobody has looked at.
    logging.getLogger("asyncio").addFilter(_without_words)
    # It quotes what it can't read; what goes wrong there is told by server/mcp_servers.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)


def _without_words(record: logging.LogRecord) -> bool:
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = "the assistant failed: %s", (describe(record.exc_info[1]),)
        record.exc_info = record.exc_text = None
    return True
