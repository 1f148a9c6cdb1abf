"""What can go wrong between an assistant and its model, in words for a person and with a reason for a machine."""

from __future__ import annotations

import openai
from agents import (
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelRefusalError,
    ModelTimeoutError,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)
from chatkit.errors import CustomStreamError
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.error_reason_pb2 import ErrorReason

NO_ANSWER = "The model gave no answer. Please try again."
TOO_LONG = "The answer became too long for the model and was cut off."
REFUSED = "The model declined to answer this."
FILTERED = "The model's provider has filtered this answer."
TOO_LATE = "The model took too long to answer. Please try again."
STOPPED_TALKING = "The model stopped in the middle of its answer. Please try again."
_BLOCKED = "This message can't be answered here."


class ModelFailureError(CustomStreamError):
    """What a person is told of a model that failed, in an `error` event.

    message: neither the model's own words nor any secret.
    reason: for whoever calls by gRPC.
    may_pass: whether the same call may succeed a moment later.
    """

    def __init__(
        self,
        message: str,
        reason: ErrorReason.ValueType = reasons.ERROR_REASON_MODEL_FAILED,
        *,
        allow_retry: bool = True,
        may_pass: bool = False,
    ) -> None:
        super().__init__(message, allow_retry=allow_retry)
        self.reason = reason
        self.may_pass = may_pass


def failure_of(error: Exception) -> ModelFailureError:
    """What an error of the two SDKs, or of what lies below them, means."""
    match error:
        case openai.APIStatusError():
            return _failure_of_status(error.status_code)
        case openai.APITimeoutError() | ModelTimeoutError():
            return ModelFailureError(TOO_LATE, reasons.ERROR_REASON_MODEL_TIMEOUT)
        case openai.APIConnectionError():
            return ModelFailureError("The connection to the model failed. Please try again.", may_pass=True)
        case openai.APIError():
            return failure_of_code(error.code)
        case ModelRefusalError():
            return ModelFailureError(REFUSED, reasons.ERROR_REASON_MODEL_REFUSED)
        case InputGuardrailTripwireTriggered() | OutputGuardrailTripwireTriggered():
            return _blocked(error.guardrail_result.output.output_info)
        case ToolInputGuardrailTripwireTriggered() | ToolOutputGuardrailTripwireTriggered():
            return _blocked(error.output.output_info)
        case MaxTurnsExceeded():
            return ModelFailureError("The assistant used its tools too often without coming to an answer.")
        case _:
            # Junk that a provider sends once it may not send twice; a bug of ours would stay.
            is_junk = isinstance(error, (ModelBehaviorError, ValueError, EOFError))
            return ModelFailureError("The model did not give a proper answer. Please try again.", may_pass=is_junk)


def _blocked(output_info: object) -> ModelFailureError:
    words = output_info if isinstance(output_info, str) else _BLOCKED
    return ModelFailureError(words, reasons.ERROR_REASON_GUARDRAIL_TRIPPED, allow_retry=False)


def failure_of_code(code: object) -> ModelFailureError:
    """What a provider means that fails in the middle of a stream."""
    if code in {"rate_limit_exceeded", "insufficient_quota"}:
        return _failure_of_status(429)
    return ModelFailureError("The model's server failed. Please try again in a moment.", may_pass=True)


def _failure_of_status(status: int) -> ModelFailureError:
    match status:
        case 401 | 403:
            return ModelFailureError(
                "The model refused the server's credentials. Please tell whoever runs this server."
            )
        case 404:
            return ModelFailureError(
                "The model that this server asks for was not found. Please tell whoever runs this server."
            )
        case 408 | 504:
            return ModelFailureError(TOO_LATE, reasons.ERROR_REASON_MODEL_TIMEOUT, may_pass=True)
        case 429:
            words = "The model is busy, or its quota is used up. Please try again in a moment."
            return ModelFailureError(words, reasons.ERROR_REASON_MODEL_BUSY, may_pass=True)
        case _ if status >= 500:
            return ModelFailureError("The model's server failed. Please try again in a moment.", may_pass=True)
        case _:
            return ModelFailureError(f"The model did not accept the request (status {status}).")
