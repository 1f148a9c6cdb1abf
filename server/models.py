"""The language models that answer, opened and closed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import openai
from agents import Model
from agents import OpenAIChatCompletionsModel as ChatCompletionsModel
from agents import OpenAIResponsesModel as ResponsesModel

from server.model_calls import Patience, PatientModel
from server.model_choice import ModelChoice
from server.offline_model import OfflineModel

_CONNECT_SECONDS = 10.0


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


class OpenModels:
    """The models that a user may pick from; the first one answers where he picks none."""

    def __init__(self, models: Iterable[OpenModel]) -> None:
        self._by_id = {model.choice.id: model for model in models}

    def __iter__(self) -> Iterator[OpenModel]:
        return iter(self._by_id.values())

    @property
    def default(self) -> OpenModel:
        """The one that answers where none is picked."""
        return next(iter(self))

    @property
    def ids(self) -> list[str]:
        """What may be picked."""
        return list(self._by_id)

    def find(self, model_id: str | None) -> OpenModel | None:
        """The model that was picked; the default one where none was, and None where there is no such model."""
        return self._by_id.get(model_id) if model_id else self.default

    async def aclose(self) -> None:
        """Close the connections of all."""
        for model in self:
            await model.aclose()


def open_models(choices: Iterable[ModelChoice], patience: Patience = Patience()) -> OpenModels:  # noqa: B008 # frozen
    """Make models ready to be called. Whoever opens them closes them."""
    return OpenModels(open_model(choice, patience) for choice in choices)


def open_model(choice: ModelChoice, patience: Patience = Patience()) -> OpenModel:  # noqa: B008 # frozen
    """Make the model that was chosen ready to be called. Whoever opens one closes it."""
    if choice.kind == "offline":
        return OpenModel(OfflineModel(), choice)
    client = openai.AsyncOpenAI(
        api_key=choice.api_key,
        base_url=choice.base_url,
        timeout=openai.Timeout(patience.first_token, connect=min(_CONNECT_SECONDS, patience.first_token)),
        max_retries=0,  # that is PatientModel's business
    )
    if choice.base_url is not None:
        # The client takes these from OPENAI_ORG_ID and OPENAI_PROJECT_ID by itself; they are no other's business.
        client.organization = client.project = None
    if choice.kind == "responses":
        return OpenModel(PatientModel(ResponsesModel(choice.name, client), patience), choice, client)
    return OpenModel(PatientModel(ChatCompletionsModel(choice.name, client), patience), choice, client)
