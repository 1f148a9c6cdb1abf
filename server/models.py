"""The language model that answers: chosen by the settings, opened here, closed here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import openai
from agents import AgentsException, MaxTurnsExceeded, Model, ModelTimeoutError
from agents import OpenAIChatCompletionsModel as ChatCompletionsModel
from agents import OpenAIResponsesModel as ResponsesModel
from chatkit.errors import CustomStreamError
from chatkit_grpc.environment import SettingsError

from server.offline_model import HOW_TO_PLUG_IN_A_MODEL, OfflineModel
from server.settings import Settings

OPENAI_MODEL = "gpt-5-mini"
XIAOMI_MODEL = "mimo-v2-flash"
XIAOMI_BASE_URL = "https://api.xiaomimimo.com/v1/"

_TIMEOUT = openai.Timeout(120.0, connect=10.0)
"""How long the model may stay silent, not how long it may talk: a reasoning model can be silent for a minute."""

_NO_KEY = "none"
"""Sent where no key is set: local servers want none, but the client insists on one."""

Kind = Literal["responses", "chat_completions", "offline"]


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """The model that answers.

    label: what to tell the operator. Sample: "mimo-v2-flash at api.xiaomimimo.com".
    kind: the interface that it is spoken to.
    how_to_change: which settings choose another one, as a sentence.
    """

    model: Model
    label: str
    kind: Kind
    how_to_change: str
    _client: openai.AsyncOpenAI | None = field(default=None, repr=False)

    async def aclose(self) -> None:
        """Close the connections to the model's server."""
        if self._client is not None:
            await self._client.close()


def choose_model(settings: Settings, *, base_url: str | None = None) -> ChosenModel:
    """The model that the settings ask for; the first of these that is set decides:

    1. MODEL_BASE_URL: any server that speaks Chat Completions, with MODEL_NAME and, where it wants a key,
       MODEL_API_KEY, which alone chooses nothing. It wins over OPENAI_API_KEY and XIAOMI_API_KEY, and is never sent
       either of them.
    2. OPENAI_API_KEY: OpenAI's Responses API. MODEL_NAME replaces the default model.
    3. XIAOMI_API_KEY: Xiaomi's Chat Completions. MODEL_NAME replaces the default model.
    4. None: the offline model.

    base_url: where the server of 2 and 3 is reached instead, for tests.
    Raises SettingsError if MODEL_BASE_URL is set without MODEL_NAME.
    """
    if settings.model_base_url:
        return _at_base_url(settings.model_base_url, settings)
    if settings.openai_api_key:
        return _openai(settings.openai_api_key, settings.model_name or OPENAI_MODEL, base_url)
    if settings.xiaomi_api_key:
        client = _client(settings.xiaomi_api_key, base_url or XIAOMI_BASE_URL)
        how = "MODEL_NAME chooses another model of Xiaomi's; OPENAI_API_KEY or MODEL_BASE_URL another provider."
        return _chat_completions(client, settings.model_name or XIAOMI_MODEL, how)
    return ChosenModel(OfflineModel(), "the offline stand-in", "offline", HOW_TO_PLUG_IN_A_MODEL)


def _at_base_url(base_url: str, settings: Settings) -> ChosenModel:
    if not settings.model_name:
        raise SettingsError("MODEL_NAME: MODEL_BASE_URL is set, so the name of a model there is needed")
    client = _client(settings.model_api_key or _NO_KEY, base_url)
    how = "MODEL_NAME chooses another model there; without MODEL_BASE_URL, OPENAI_API_KEY or XIAOMI_API_KEY decides."
    return _chat_completions(client, settings.model_name, how)


def _openai(api_key: str, name: str, base_url: str | None) -> ChosenModel:
    client = _client(api_key, base_url)
    how = "MODEL_NAME chooses another model of OpenAI's; MODEL_BASE_URL another provider."
    return ChosenModel(ResponsesModel(name, client), _label(name, client), "responses", how, client)


def _chat_completions(client: openai.AsyncOpenAI, name: str, how: str) -> ChosenModel:
    # The client takes these from OPENAI_ORG_ID and OPENAI_PROJECT_ID by itself; they are no other provider's business.
    client.organization = client.project = None
    return ChosenModel(ChatCompletionsModel(name, client), _label(name, client), "chat_completions", how, client)


def _client(api_key: str, base_url: str | None) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=api_key, base_url=base_url, timeout=_TIMEOUT)


def _label(name: str, client: openai.AsyncOpenAI) -> str:
    return f"{name} at {client.base_url.host}"


def readable_failure(error: openai.OpenAIError | AgentsException) -> CustomStreamError:
    """What to tell a person about a failed model call: neither the model's own words nor any secret."""
    return CustomStreamError(_what_happened(error), allow_retry=True)


def _what_happened(error: openai.OpenAIError | AgentsException) -> str:
    match error:
        case openai.APIStatusError():
            return _what_status_means(error.status_code)
        case openai.APITimeoutError() | ModelTimeoutError():
            return "The model took too long to answer. Please try again."
        case openai.APIConnectionError():
            return "The connection to the model failed. Please try again."
        case MaxTurnsExceeded():
            return "The assistant used its tools too often without coming to an answer."
        case _:
            return "The model did not give a proper answer. Please try again."


def _what_status_means(status: int) -> str:
    match status:
        case 401 | 403:
            return "The model refused the server's credentials. Please tell whoever runs this server."
        case 404:
            return "The model that this server asks for was not found. Please tell whoever runs this server."
        case 429:
            return "The model is busy, or its quota is used up. Please try again in a moment."
        case _ if status >= 500:
            return "The model's server failed. Please try again in a moment."
        case _:
            return f"The model did not accept the request (status {status})."
