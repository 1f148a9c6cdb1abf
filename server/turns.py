"""Who answers a message: the model that it picks, the agent that it or a hand-over chooses, a tool that it wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents import Agent, Model, ModelProvider, ModelSettings
from chatkit.errors import CustomStreamError
from chatkit.types import InferenceOptions, ThreadMetadata, UserMessageItem
from chatkit_grpc.errors import ValidationError

from server.models import OpenModel, OpenModels
from server.team import ChatAgent, Team

_AGENT = "_chatkit_grpc.agent"
"""Where a thread's metadata keep who answers on it."""
_WHERE = "$.params.input.inference_options"
_NO_OPTIONS = InferenceOptions()


@dataclass(frozen=True, slots=True)
class Turn:
    """Who answers: the model, and the agent that begins."""

    model: OpenModel
    agent: ChatAgent


class Turns:
    """Chooses who answers, of some models and agents."""

    def __init__(self, models: OpenModels, team: Team) -> None:
        self._models = models
        self._team = team

    def check(self, options: InferenceOptions) -> None:
        """Refuse what isn't there to be picked. Raises ValidationError, which lists what is."""
        if self._models.find(options.model) is None:
            raise ValidationError.at(f"{_WHERE}.model", f"expected one of: {', '.join(self._models.ids)}")
        choice = options.tool_choice
        if choice is not None and choice.id not in self._team.choices:
            raise ValidationError.at(f"{_WHERE}.tool_choice.id", f"expected one of: {', '.join(self._team.choices)}")

    def choose(self, thread: ThreadMetadata, message: UserMessageItem | None, *, is_new: bool) -> Turn:
        """Who answers a message: whom it chooses, or else who answers on the thread since the last hand-over.

        is_new: whether the answer begins. Where it goes on, after a client tool or a form, no tool is wanted again.
        Raises CustomStreamError for a model that isn't there any more.
        """
        options = message.inference_options if message else _NO_OPTIONS
        model = self._models.find(options.model)
        if model is None:
            raise CustomStreamError(
                f"The model of this message isn't there any more. There are: {', '.join(self._models.ids)}."
            )
        chosen = options.tool_choice.id if options.tool_choice else None
        if agent := self._team.find(chosen):
            return Turn(model, agent)
        if chosen in self._team.choices:
            return Turn(model, _with_tool(self._team.default, chosen) if is_new else self._team.default)
        return Turn(model, self._team.find(thread.metadata.get(_AGENT)) or self._team.default)

    def remember(self, thread: ThreadMetadata, turn: Turn, last: Agent[Any]) -> None:
        """Let the agent that answered last answer on, where the one that began has handed over."""
        if last.name != turn.agent.name:
            thread.metadata[_AGENT] = self._team.id_of(last)


class PickedModel(ModelProvider):
    """The model that was picked, for each agent that names none of its own; a name may be one of the others' ids."""

    def __init__(self, models: OpenModels, picked: OpenModel) -> None:
        self._models = models
        self._picked = picked

    def get_model(self, model_name: str | None) -> Model:
        """The model of an agent."""
        found = self._models.find(model_name) if model_name else None
        return (found or self._picked).model


def _with_tool(agent: ChatAgent, tool: str) -> ChatAgent:
    """The agent, made to use a tool first. Whom it hands over to isn't."""
    return agent.clone(model_settings=agent.model_settings.resolve(ModelSettings(tool_choice=tool)))
