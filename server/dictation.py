"""Dictation: speech into text, by OpenAI's transcription API or one that is compatible."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Mapping
from typing import Any

import openai
from chatkit.types import AudioInput, TranscriptionResult
from chatkit_grpc.errors import AgentError, ChatKitError, LimitError, UnavailableError, ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server.context import RequestContext
from server.dictation_settings import Transcriber
from server.text_repair import whole

_TRIES = 3
_PAUSE_SECONDS = 0.25
"""Before the second try; twice as long before the third."""
_CONNECT_SECONDS = 10.0
_NONSENSE = "did not give a proper answer"
_LONGEST_WAIT_SECONDS = 3600.0
"""A server may ask for any wait; nobody is told of a longer one."""

_ENDINGS: Mapping[str, str] = {
    "audio/webm": "webm",
    "video/webm": "webm",
    "audio/ogg": "ogg",
    "application/ogg": "ogg",
    "audio/mp4": "mp4",
    "video/mp4": "mp4",
    "audio/m4a": "m4a",
    "audio/x-m4a": "m4a",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/x-wav": "wav",
    "audio/vnd.wave": "wav",
    "audio/flac": "flac",
    "audio/x-flac": "flac",
}
"""How the name of a file of each type ends: the API goes by that. What browsers record is among the first."""

_LANGUAGES = re.compile(
    "a[frz]|b[egs]|c[asy]|d[ae]|e[lnst]|f[air]|gl|h[eiruy]|i[dst]|ja|k[kno]|l[tv]|m[ikrs]|n[elo]|p[lt]|r[ou]|s[klrvw]"
    "|t[ahlr]|u[kr]|vi|zh"
)
"""What the API can be told to expect."""
_LANGUAGE = re.compile(r"\s*([a-z]+)", re.IGNORECASE)

_OPENAI = "https://api.openai.com/v1"
"""Said here, since the client would go where OPENAI_BASE_URL says, with whichever key."""

log = logging.getLogger(__name__)


class Dictation:
    """Sends recordings to a transcriber. Whoever opens one closes it."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber
        self._client = openai.AsyncOpenAI(
            api_key=transcriber.api_key or "none",  # the client insists on one
            base_url=transcriber.base_url or _OPENAI,
            # A recording goes where the operator says, and not where an answer does.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
            timeout=openai.Timeout(transcriber.seconds, connect=min(_CONNECT_SECONDS, transcriber.seconds)),
            max_retries=0,  # its own would wait out a Retry-After while somebody waits for his words
        )
        if transcriber.base_url is not None:
            # The client takes these from the environment by itself; they are nobody else's business.
            self._client.organization = self._client.project = None

    async def aclose(self) -> None:
        """Close the connections to the transcriber."""
        await self._client.close()

    async def transcribe(self, audio: AudioInput, context: RequestContext) -> TranscriptionResult:
        """The text of a recording, which may be empty; what it took is added to the context's `tokens_used`.

        Raises ValidationError for what is no recording, UnavailableError where it may work in a moment, and AgentError.
        """
        name = _file_name(audio)
        failure: ChatKitError
        try:
            async with asyncio.timeout(self._transcriber.seconds):
                return _result(await self._ask(audio, name, context), context)
        except TimeoutError:
            failure = _too_slow(self._transcriber.seconds)
        except openai.OpenAIError as error:
            log.warning("the transcription failed: %s", _kind(error))
            failure = _meaning(error)
        except ValueError as error:  # no JSON, whatever it says it is
            log.warning("the transcription failed: %s", type(error).__name__)
            failure = _failed(_NONSENSE)
        # Not inside the except block: the provider's words may quote what was sent.
        raise failure

    async def _ask(self, audio: AudioInput, name: str, context: RequestContext) -> object:
        """What the transcriber answers, asked again where that may help."""
        for attempt in range(1, _TRIES + 1):
            try:
                return await self._client.audio.transcriptions.create(
                    file=(name, audio.data, audio.media_type),
                    model=self._transcriber.model,
                    language=_language(context) or openai.omit,
                )
            except openai.APIError as error:
                if attempt == _TRIES or not _may_pass(error):
                    raise
            await asyncio.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))  # noqa: S311
        raise AssertionError("unreachable")


def _file_name(audio: AudioInput) -> str:
    """A name that says what kind of file it is. Raises ValidationError."""
    ending = _ENDINGS.get(audio.media_type.strip().lower())
    if ending is None:
        expected = "audio/webm, audio/ogg, audio/mp4, audio/mpeg, audio/wav or audio/flac"
        raise ValidationError.at("$.params.mime_type", f"expected {expected}")
    if not audio.data:
        raise ValidationError.at("$.params.audio_base64", "expected a recording, got nothing")
    return f"recording.{ending}"


def _language(context: RequestContext) -> str | None:
    """The language to expect, where the page names a single one.

    The API takes it for certain. A browser names several where its user knows several; then it listens for itself.
    """
    header = str(context.request.headers.get("accept-language", ""))
    named = {found[1].lower() for tag in header.split(",") if (found := _LANGUAGE.match(tag))}
    language = named.pop() if len(named) == 1 else None
    language = {"nb": "no", "nn": "no"}.get(language or "", language)
    return language if language and _LANGUAGES.fullmatch(language) else None


def _result(answer: Any, context: RequestContext) -> TranscriptionResult:
    """The text of an answer. What a server that is merely compatible sends may be anything."""
    text = getattr(answer, "text", None)
    if not isinstance(text, str):
        raise _failed(_NONSENSE)
    tokens = getattr(getattr(answer, "usage", None), "total_tokens", None)
    if isinstance(tokens, int) and tokens > 0:
        context.tokens_used += tokens
    return TranscriptionResult(text=str(whole(text)).replace("\0", "").strip())


def _may_pass(error: openai.APIError) -> bool:
    """Whether it may work at once. A provider that is busy is left alone."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500
    return isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)


def _meaning(error: openai.OpenAIError) -> ChatKitError:
    """What a failure means to whoever spoke: neither the provider's own words nor any secret."""
    match error:
        case openai.APITimeoutError():
            return _busy("took too long")
        case openai.APIConnectionError():
            return _busy("can't be reached")
        case openai.APIStatusError():
            return _meaning_of_status(error)
        case _:
            return _failed(_NONSENSE)


def _meaning_of_status(error: openai.APIStatusError) -> ChatKitError:
    match error.status_code:
        case 400 | 415 | 422:
            return ValidationError.at("$.params.audio_base64", "expected a recording that can be understood")
        case 413:
            return LimitError(
                "The recording is larger than the transcription service takes. Dictate less at a time.",
                reason=reasons.ERROR_REASON_REQUEST_TOO_LARGE,
            )
        case 401 | 403:
            return _failed("refused the server's credentials. Please tell whoever runs this server")
        case 404:
            return _failed("does not know the server's model. Please tell whoever runs this server")
        case 429:
            return _busy("is busy, or its quota is used up", _retry_after(error))
        case status if status >= 500:
            return _busy("failed", _retry_after(error))
        case status:
            return _failed(f"did not accept the request (status {status})")


def _retry_after(error: openai.APIStatusError) -> float | None:
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:  # none, or a date
        return None
    return min(seconds, _LONGEST_WAIT_SECONDS) if seconds > 0 else None


def _too_slow(seconds: float) -> ChatKitError:
    return _busy(f"took longer than {seconds:g} s")


def _busy(what: str, retry_after: float | None = None) -> UnavailableError:
    return UnavailableError(
        f"The transcription service {what}. Please try again in a moment.",
        reason=reasons.ERROR_REASON_TRANSCRIPTION_BUSY,
        retry_after=retry_after,
    )


def _failed(what: str) -> AgentError:
    return AgentError(f"The transcription service {what}.", reason=reasons.ERROR_REASON_TRANSCRIPTION_FAILED)


def _kind(error: openai.OpenAIError) -> str:
    status = f" {error.status_code}" if isinstance(error, openai.APIStatusError) else ""
    return type(error).__name__ + status
