"""Which language models answer, as the settings say. It loads no SDK, so that whoever only tells of it is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from chatkit_grpc.environment import SettingsError

from server.model_file import FILE_HINT, read_models
from server.settings import Settings

OPENAI_MODEL = "gpt-5-mini"
XIAOMI_MODEL = "mimo-v2-flash"
XIAOMI_BASE_URL = "https://api.xiaomimimo.com/v1/"
HOW_TO_PLUG_IN_A_MODEL = (
    "For real answers, start the server with OPENAI_API_KEY (OpenAI), XIAOMI_API_KEY (Xiaomi MiMo), "
    "MODEL_BASE_URL and MODEL_NAME (any server that speaks Chat Completions), or MODELS (several at once)."
)

_NO_KEY = "none"
"""Sent where no key is set: local servers want none, but the client insists on one."""

Kind = Literal["responses", "chat_completions", "offline"]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model that answers.

    kind: the interface that it is spoken to.
    name: what its server calls it.
    base_url: where its server is. None: OpenAI's own, or nowhere for the offline model.
    how_to_change: which settings choose another one, as a sentence.
    id: what a page picks it by. title: what a person picks it by. Without them, its name.
    context_tokens: how much of a thread it is told. None: as CONTEXT_TOKENS says.
    """

    kind: Kind
    name: str
    how_to_change: str
    base_url: str | None = None
    api_key: str = field(default=_NO_KEY, repr=False)
    id: str = ""
    title: str = ""
    context_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("id", "title"):
            if not getattr(self, name):
                object.__setattr__(self, name, "offline" if self.kind == "offline" else self.name)

    @property
    def label(self) -> str:
        """What to tell the operator. Sample: "mimo-v2-flash at api.xiaomimimo.com"."""
        if self.kind == "offline":
            return self.name
        return f"{self.name} at {urlsplit(self.base_url).hostname if self.base_url else 'api.openai.com'}"


def choose_models(settings: Settings) -> tuple[ModelChoice, ...]:
    """The models that answer, the one that does unless another is picked first. Raises SettingsError.

    Those that the file MODELS lists, or else the one of `choose_model`.
    """
    if settings.models is None:
        return (choose_model(settings),)
    return tuple(
        ModelChoice(
            model.provider,
            "the offline stand-in" if model.provider == "offline" else model.model or model.id,
            f"{FILE_HINT} {settings.models}.",
            model.base_url,
            model.api_key or _NO_KEY,
            model.id,
            model.label or model.id,
            model.context_tokens,
        )
        for model in read_models(settings.models)
    )


def choose_model(settings: Settings) -> ModelChoice:
    """The model that the settings ask for where no file lists several; the first of these that is set decides:

    1. MODEL_BASE_URL: any server that speaks Chat Completions, with MODEL_NAME and, where it wants a key,
       MODEL_API_KEY, which alone chooses nothing. It wins over OPENAI_API_KEY and XIAOMI_API_KEY, and is never sent
       either of them.
    2. OPENAI_API_KEY: OpenAI's Responses API. MODEL_NAME replaces the default model.
    3. XIAOMI_API_KEY: Xiaomi's Chat Completions. MODEL_NAME replaces the default model.
    4. None: the offline model.

    Raises SettingsError if MODEL_BASE_URL is set without MODEL_NAME.
    """
    if settings.model_base_url:
        if not settings.model_name:
            raise SettingsError("MODEL_NAME: MODEL_BASE_URL is set, so the name of a model there is needed")
        how = (
            "MODEL_NAME chooses another model there; without MODEL_BASE_URL, OPENAI_API_KEY or XIAOMI_API_KEY decides."
        )
        key = settings.model_api_key or _NO_KEY
        return ModelChoice("chat_completions", settings.model_name, how, settings.model_base_url, key)
    if settings.openai_api_key:
        how = "MODEL_NAME chooses another model of OpenAI's; MODEL_BASE_URL another provider."
        return ModelChoice("responses", settings.model_name or OPENAI_MODEL, how, None, settings.openai_api_key)
    if settings.xiaomi_api_key:
        how = "MODEL_NAME chooses another model of Xiaomi's; OPENAI_API_KEY or MODEL_BASE_URL another provider."
        name = settings.model_name or XIAOMI_MODEL
        return ModelChoice("chat_completions", name, how, XIAOMI_BASE_URL, settings.xiaomi_api_key)
    return ModelChoice("offline", "the offline stand-in", HOW_TO_PLUG_IN_A_MODEL)
