"""A model as an assistant can rely on it: it answers in time, is asked again where that helps, or fails in words."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

from agents import Model, ModelResponse, TResponseInputItem
from agents.items import TResponseStreamEvent
from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseErrorEvent,
    ResponseFailedEvent,
    ResponseIncompleteEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseTextDeltaEvent,
)

from server.model_failures import (
    FILTERED,
    NO_ANSWER,
    REFUSED,
    STOPPED_TALKING,
    TOO_LATE,
    TOO_LONG,
    ModelFailureError,
    failure_of,
    failure_of_code,
)
from server.refused_files import refuses_input, without_files

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0
_BEFORE_THE_FIRST_TOKEN = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.refusal.delta",
        "response.refusal.done",
        "response.content_part.done",
    }
)
"""What a stream begins with before it says anything: kept back, so that a broken one can be begun again unseen, and a
refusal is told as what it is."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a model may take, in seconds, and how often it is asked again.

    first_token: until it says anything. token: between any two things that it says.
    retries: beyond the first call, as long as it has said nothing.
    """

    first_token: float = 120.0
    token: float = 60.0
    retries: int = 2


class PatientModel(Model):
    """A model of the Agents SDK whose calls fail with ModelFailureError and nothing else of the model's own.

    It is asked again after a failure that may pass, when the provider says, but only as long as it has said nothing and
    within the time that it has for its first token.
    """

    def __init__(self, model: Model, patience: Patience) -> None:
        self._model = model
        self._patience = patience

    async def get_response(self, *call: Any, **more: Any) -> ModelResponse:
        """The whole answer at once."""
        try:
            async with asyncio.timeout(self._patience.first_token):
                return await self._model.get_response(*call, **more)
        except TimeoutError:
            raise _too_late(TOO_LATE) from None
        except Exception as error:  # as below
            raise failure_of(error) from error

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002 # the interface calls it so
        *call: Any,
        **more: Any,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """The answer token by token."""
        deadline = _now() + self._patience.first_token
        for attempt in count(1):
            has_begun = False
            try:
                events_of_attempt = self._attempt(deadline, system_instructions, input, *call, **more)
                async with aclosing(events_of_attempt) as events:
                    async for event in events:
                        has_begun = True
                        yield event
                return
            except ModelFailureError as failure:
                if not has_begun and refuses_input(failure.__cause__) and (bare := without_files(input)) is not input:
                    logger.info("the model refuses what it was sent: it is asked again without files")
                    input = bare  # noqa: A001 # as above
                    continue
                pause = None if has_begun else self._pause_after(failure, attempt, deadline)
                if pause is None:
                    # The error's own text may quote the conversation: only its kind is logged.
                    logger.warning("the model failed: %s (%s)", failure.message, type(failure.__cause__).__name__)
                    raise
                logger.info("the model is asked again: %s (%s)", failure.message, type(failure.__cause__).__name__)
            await asyncio.sleep(pause)

    def _pause_after(self, failure: ModelFailureError, attempt: int, deadline: float) -> float | None:
        """Seconds until the model is asked again; None where it isn't."""
        if not failure.may_pass or attempt > self._patience.retries:
            return None
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1))
        pause *= random.uniform(0.5, 1)  # noqa: S311 # so that those who failed together don't try together
        if isinstance(failure.__cause__, Exception):
            request = ModelRetryAdviceRequest(failure.__cause__, attempt, stream=True)
            advice = self._model.get_retry_advice(request)
            if advice is not None and advice.retry_after is not None:
                pause = advice.retry_after
        return pause if _now() + pause < deadline else None

    async def _attempt(self, deadline: float, *call: Any, **more: Any) -> AsyncGenerator[TResponseStreamEvent, None]:
        held: list[TResponseStreamEvent] = []
        is_held = True
        has_said = has_answered = is_complete = False
        async with aclosing(self._in_time(deadline, *call, **more)) as events:
            async for event in events:
                _check(event)
                match event:
                    case ResponseTextDeltaEvent():
                        has_said = True
                    case ResponseOutputItemDoneEvent():
                        _check_refusal([event.item], has_said=has_said)
                        has_answered = has_answered or _is_answer(event.item)
                    case ResponseCompletedEvent():
                        is_complete = True
                        _check_refusal(event.response.output, has_said=has_said)
                        if not (has_answered or any(map(_is_answer, event.response.output))):
                            # No error to the SDK, but nothing to a person.
                            raise ModelFailureError(NO_ANSWER, may_pass=True)
                is_held = is_held and event.type in _BEFORE_THE_FIRST_TOKEN and not _is_thinking(event)
                held.append(event)
                if not is_held:
                    for kept in held:
                        yield kept
                    held.clear()
        if not is_complete:
            raise ModelFailureError(STOPPED_TALKING if has_answered or not is_held else NO_ANSWER, may_pass=True)

    async def _in_time(self, deadline: float, *call: Any, **more: Any) -> AsyncGenerator[TResponseStreamEvent, None]:
        """The model's events, or a failure where one comes too late."""
        events = cast(
            "AsyncGenerator[TResponseStreamEvent, None]",
            self._model.stream_response(*call, **more),
        )
        has_spoken = False
        try:
            while True:
                seconds = self._patience.token if has_spoken else max(0.0, deadline - _now())
                async with asyncio.timeout(seconds):
                    event = await anext(events, None)
                if event is None:
                    return
                if event.type.startswith("response.reasoning") or _is_thinking(event):
                    # It shows that it thinks, and may go on with that in silence.
                    has_spoken, deadline = False, _now() + self._patience.first_token
                elif event.type not in _BEFORE_THE_FIRST_TOKEN:
                    has_spoken = True
                yield event
        except TimeoutError:
            raise _too_late(STOPPED_TALKING if has_spoken else TOO_LATE) from None
        except Exception as error:  # a provider's junk may break any of the libraries in between
            raise failure_of(error) from error
        finally:
            await events.aclose()

    async def close(self) -> None:
        """Release what the model holds."""
        await self._model.close()

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        """What the provider says of another try."""
        return self._model.get_retry_advice(request)


def _check(event: TResponseStreamEvent) -> None:
    """Raise for an event that tells of a failure."""
    match event:
        case ResponseFailedEvent():
            error = event.response.error
            raise failure_of_code(error.code if error else None)
        case ResponseErrorEvent():
            raise failure_of_code(event.code)
        case ResponseIncompleteEvent():
            details = event.response.incomplete_details
            if details is not None and details.reason == "content_filter":
                raise ModelFailureError(FILTERED, reasons.ERROR_REASON_MODEL_REFUSED)
            raise ModelFailureError(TOO_LONG)


def _is_thinking(event: TResponseStreamEvent) -> bool:
    """Whether a page shows already that the model thinks."""
    return isinstance(event, ResponseOutputItemAddedEvent) and event.item.type == "reasoning"


def _is_answer(item: Any) -> bool:
    if item.type != "message":
        return bool(item.type != "reasoning")
    return any(part.text.strip() for part in item.content if part.type == "output_text")


def _check_refusal(items: Iterable[Any], *, has_said: bool) -> None:
    """Raise for a refusal where nothing else was said; after something, the SDK does."""
    if not has_said and any(map(_is_refusal, items)):
        raise ModelFailureError(REFUSED, reasons.ERROR_REASON_MODEL_REFUSED)


def _is_refusal(item: Any) -> bool:
    return item.type == "message" and any(part.type == "refusal" for part in item.content) and not _is_answer(item)


def _too_late(words: str) -> ModelFailureError:
    return ModelFailureError(words, reasons.ERROR_REASON_MODEL_TIMEOUT)


def _now() -> float:
    return asyncio.get_running_loop().time()
