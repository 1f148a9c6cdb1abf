"""The file MODELS: several models at once, of any providers, in TOML or JSON.

[[models]]                          # the first one answers unless another is picked
id = "gpt-5-mini"                   # what inference_options.model says
label = "GPT-5 mini"                # what people read
provider = "responses"              # or "chat_completions", or "offline"
key = "OPENAI_API_KEY"              # the variable that holds the key; without one, none is sent

[[models]]
id = "llama"
label = "Llama, in the cellar"
provider = "chat_completions"
base_url = "http://10.0.0.7:11434/v1/"
model = "llama3.2"                  # what its server calls it, where that isn't the id
context_tokens = 8000               # how much of a thread it is told, where that isn't CONTEXT_TOKENS
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chatkit_grpc.environment import SettingsError, check_http_url, read_file
from environs import ValidationError

FILE_HINT = "The models are listed in"
_PROVIDERS = ("responses", "chat_completions", "offline")
_MEMBERS = {"id": str, "label": str, "provider": str, "base_url": str, "model": str, "key": str, "context_tokens": int}


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model of the file, with the key that its variable holds."""

    id: str
    provider: Literal["responses", "chat_completions", "offline"]
    label: str | None = None
    base_url: str | None = None
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    context_tokens: int | None = None


def read_models(path: Path) -> list[ListedModel]:
    """The models of a file. Raises SettingsError, which names the first that is wrong."""
    members = _parse(path)
    listed = members.get("models") if isinstance(members, dict) else None
    if not isinstance(listed, list) or not listed:
        raise SettingsError(f"MODELS: {path}: expected a list `models` with one model or more")
    models = [_model(entry, f"MODELS: {path}: models[{at}]") for at, entry in enumerate(listed)]
    for at, model in enumerate(models):
        if model.id in {earlier.id for earlier in models[:at]}:
            raise SettingsError(f"MODELS: {path}: models[{at}].id: there is another {model.id!r}")
    return models


def _parse(path: Path) -> Any:
    data = read_file("MODELS", path)
    try:
        return json.loads(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except ValueError as error:
        raise SettingsError(f"MODELS: {path}: {error}") from None


def _model(entry: Any, where: str) -> ListedModel:
    if not isinstance(entry, dict):
        raise SettingsError(f"{where}: expected a table, got {type(entry).__name__}")
    for name, value in entry.items():
        expected = _MEMBERS.get(name)
        if expected is None:
            raise SettingsError(f"{where}.{name}: there is no such member; expected one of {', '.join(_MEMBERS)}")
        if type(value) is not expected or value in {"", 0}:
            raise SettingsError(
                f"{where}.{name}: expected {'a text' if expected is str else 'a number'}, got {value!r}"
            )
    for name in ("id", "provider"):
        if name not in entry:
            raise SettingsError(f"{where}.{name}: expected it to be there")
    if entry["provider"] not in _PROVIDERS:
        raise SettingsError(f"{where}.provider: expected one of {', '.join(_PROVIDERS)}, got {entry['provider']!r}")
    _check_size(entry, where)
    _check_url(entry, where)
    given = {name: value for name, value in entry.items() if name != "key"}
    return ListedModel(**given, api_key=_key(entry.get("key"), where))


def _check_size(entry: dict[str, Any], where: str) -> None:
    if entry.get("context_tokens", 1000) < 1000:
        raise SettingsError(f"{where}.context_tokens: expected 1000 or more, got {entry['context_tokens']}")


def _check_url(entry: dict[str, Any], where: str) -> None:
    if "base_url" not in entry:
        if entry["provider"] == "chat_completions":
            raise SettingsError(f"{where}.base_url: expected the URL of a server that speaks Chat Completions")
        return
    try:
        check_http_url(entry["base_url"])
    except ValidationError as error:
        raise SettingsError(f"{where}.base_url: {error}") from None


def _key(variable: str | None, where: str) -> str | None:
    if variable is None:
        return None
    # The name and never what is in it: somebody may have put the key itself there.
    if not variable.isidentifier() or not variable.isascii():
        raise SettingsError(f"{where}.key: expected the name of a variable that holds the key")
    if not (key := os.environ.get(variable)):
        raise SettingsError(f"{where}.key: the variable that it names is not set")
    return key
