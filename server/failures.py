"""Whatever goes wrong while a call is served, as one of our errors."""

from __future__ import annotations

import logging
import traceback

from chatkit.errors import CustomStreamError
from chatkit.store import NotFoundError as SDKNotFoundError
from chatkit_grpc.errors import AgentError, ChatKitError, NotFoundError, ValidationError
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
        return AgentError(error.message)
    if isinstance(error, NotImplementedError):
        return ValidationError("This assistant doesn't do that.", reason=reasons.ERROR_REASON_UNSUPPORTED)
    if sdk.is_refusal(error):
        return ValidationError(str(error), reason=reasons.ERROR_REASON_FAILED_PRECONDITION)
    log.error("the assistant failed: %s", describe(error))
    log.debug("the assistant failed", exc_info=error)
    return AgentError("The assistant failed.")


def describe(error: BaseException) -> str:
    """What kind of error it is and where it came from, without its message, which may quote a conversation.

    Sample: "KeyError at my_agent.py:42 in respond".
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"{type(error).__qualname__}{place}"
