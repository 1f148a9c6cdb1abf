"""The language model that answers, opened and closed, and what its failures mean to a person."""

from __future__ import annotations

from dataclasses import dataclass, field

import openai
from agents import AgentsException, MaxTurnsExceeded, Model, ModelTimeoutError
from agents import OpenAIChatCompletionsModel as ChatCompletionsModel
from agents import OpenAIResponsesModel as ResponsesModel
from chatkit.errors import CustomStreamError

from server.model_choice import ModelChoice
from server.offline_model import OfflineModel

_TIMEOUT = openai.Timeout(120.0, connect=10.0)
"""How long the model may stay silent, not how long it may talk: a reasoning model can be silent for a minute."""


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that can be called, and what it is."""

    model: Model
    choice: ModelChoice
    _client: openai.AsyncOpenAI | None = field(default=None, repr=False)

    async def aclose(self) -> None:
        """Close the connections to the model's server."""
        if self._client is not None:
            await self._client.close()


def open_model(choice: ModelChoice) -> OpenModel:
    """Make the model that was chosen ready to be called. Whoever opens one closes it."""
    if choice.kind == "offline":
        return OpenModel(OfflineModel(), choice)
    client = openai.AsyncOpenAI(api_key=choice.api_key, base_url=choice.base_url, timeout=_TIMEOUT)
    if choice.kind == "responses":
        return OpenModel(ResponsesModel(choice.name, client), choice, client)
    # The client takes these from OPENAI_ORG_ID and OPENAI_PROJECT_ID by itself; they are no other provider's business.
    client.organization = client.project = None
    return OpenModel(ChatCompletionsModel(choice.name, client), choice, client)


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
