"""Who turns speech into text, as an operator sets it. It loads no SDK, so that whoever only tells of it is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chatkit_grpc.environment import Environment, SettingsError, check_http_url
from environs import validate as must_be

OPENAI_MODEL = "gpt-4o-mini-transcribe"
HOW_TO_PLUG_IN_DICTATION = (
    "This server takes no dictation. It needs OPENAI_API_KEY, or TRANSCRIPTION_BASE_URL with TRANSCRIPTION_MODEL."
)


@dataclass(frozen=True, slots=True)
class DictationSettings:
    """The settings of dictation. README.md lists them with what they are for; each is the variable of its name."""

    transcription_base_url: str | None = None
    transcription_model: str | None = None
    transcription_api_key: str | None = None
    transcription_timeout_seconds: float = 25.0

    @classmethod
    def read(cls, env: Environment) -> DictationSettings:
        """Read the environment; `env.check()` tells what is wrong with it."""
        settings: dict[str, Any] = {
            "transcription_base_url": env.str("TRANSCRIPTION_BASE_URL", "", validate=check_http_url) or None,
            "transcription_model": env.text("TRANSCRIPTION_MODEL"),
            "transcription_api_key": env.text("TRANSCRIPTION_API_KEY"),
            "transcription_timeout_seconds": env.float(
                "TRANSCRIPTION_TIMEOUT_SECONDS", cls().transcription_timeout_seconds, validate=must_be.Range(1, 3600)
            ),
        }
        return cls(**settings)


NO_DICTATION = DictationSettings()


@dataclass(frozen=True, slots=True)
class Transcriber:
    """Who turns speech into text.

    base_url: where it is. None: OpenAI's own. api_key: None where it wants none.
    seconds: how long it may take, with all that is tried again.
    """

    model: str
    seconds: float
    base_url: str | None = None
    api_key: str | None = None


def choose_transcriber(settings: DictationSettings, openai_api_key: str | None) -> Transcriber | None:
    """Who transcribes as the settings say, None where nobody does; the first of these that is set decides:

    1. TRANSCRIPTION_BASE_URL: any server that speaks OpenAI's transcription API, with TRANSCRIPTION_MODEL and, where it
       wants a key, TRANSCRIPTION_API_KEY. It is never sent OPENAI_API_KEY.
    2. TRANSCRIPTION_API_KEY or OPENAI_API_KEY: OpenAI. TRANSCRIPTION_MODEL replaces the default model.

    Raises SettingsError if TRANSCRIPTION_BASE_URL is set without TRANSCRIPTION_MODEL.
    """
    model, seconds = settings.transcription_model, settings.transcription_timeout_seconds
    if settings.transcription_base_url:
        if not model:
            raise SettingsError(
                "TRANSCRIPTION_MODEL: TRANSCRIPTION_BASE_URL is set, so the name of a model there is needed"
            )
        return Transcriber(model, seconds, settings.transcription_base_url, settings.transcription_api_key)
    if key := settings.transcription_api_key or openai_api_key:
        return Transcriber(model or OPENAI_MODEL, seconds, None, key)
    return None
