"""Which model answers, as the settings say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from agents import Model, OpenAIChatCompletionsModel, OpenAIResponsesModel
from chatkit_grpc.environment import SettingsError

from server.model_calls import PatientModel
from server.model_choice import OPENAI_MODEL, choose_model
from server.models import OpenModel, open_model
from server.offline_model import OfflineModel
from server.settings import Settings

Choose = Callable[[Settings], Awaitable[OpenModel]]


@pytest.fixture
async def choose() -> AsyncIterator[Choose]:
    async with AsyncExitStack() as stack:

        async def choose(settings: Settings) -> OpenModel:
            chosen = open_model(choose_model(settings))
            stack.push_async_callback(chosen.aclose)
            return chosen

        yield choose


def inner(chosen: OpenModel) -> Model:
    assert isinstance(chosen.model, PatientModel)
    return chosen.model._model


async def test_an_openai_key_means_the_responses_api(choose: Choose) -> None:
    chosen = await choose(Settings(openai_api_key="sk-x"))
    assert chosen.choice.kind == "responses"
    assert isinstance(inner(chosen), OpenAIResponsesModel)
    assert chosen.choice.label == f"{OPENAI_MODEL} at api.openai.com"


async def test_a_xiaomi_key_means_mimo(choose: Choose) -> None:
    chosen = await choose(Settings(xiaomi_api_key="x"))
    assert chosen.choice.kind == "chat_completions"
    assert isinstance(inner(chosen), OpenAIChatCompletionsModel)
    assert chosen.choice.label == "mimo-v2-flash at api.xiaomimimo.com"


async def test_a_model_name_replaces_the_default_one(choose: Choose) -> None:
    assert (await choose(Settings(openai_api_key="x", model_name="gpt-9"))).choice.label == "gpt-9 at api.openai.com"
    assert (
        await choose(Settings(xiaomi_api_key="x", model_name="mimo-9"))
    ).choice.label == "mimo-9 at api.xiaomimimo.com"


async def test_openai_goes_before_xiaomi(choose: Choose) -> None:
    assert (await choose(Settings(openai_api_key="x", xiaomi_api_key="y"))).choice.kind == "responses"


async def test_a_base_url_wins_and_never_sees_the_other_keys(choose: Choose) -> None:
    chosen = await choose(
        Settings(
            openai_api_key="sk-secret", xiaomi_api_key="xi-secret", model_base_url="http://host:1/v1", model_name="m"
        )
    )
    assert chosen.choice.kind == "chat_completions"
    assert chosen.choice.label == "m at host"
    assert chosen._client is not None
    assert "secret" not in chosen._client.api_key


async def test_only_openai_is_told_the_organization(choose: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    told, untold = await choose(Settings(openai_api_key="x")), await choose(Settings(xiaomi_api_key="x"))
    assert told._client is not None
    assert untold._client is not None
    assert "org" in told._client.default_headers.values()
    assert "org" not in untold._client.default_headers.values()


async def test_a_base_url_gets_its_own_key(choose: Choose) -> None:
    chosen = await choose(Settings(model_base_url="http://host:1/v1", model_name="m", model_api_key="mine"))
    assert chosen._client is not None
    assert chosen._client.api_key == "mine"


def test_a_base_url_without_a_model_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="MODEL_NAME"):
        choose_model(Settings(model_base_url="http://host:1/v1"))


async def test_without_a_key_the_offline_model_answers(choose: Choose) -> None:
    chosen = await choose(Settings())
    assert chosen.choice.kind == "offline"
    assert isinstance(chosen.model, OfflineModel)
    assert all(name in chosen.choice.how_to_change for name in ("OPENAI_API_KEY", "XIAOMI_API_KEY", "MODEL_BASE_URL"))


async def test_the_chosen_model_shows_no_key(choose: Choose) -> None:
    assert "sk-secret" not in repr(await choose(Settings(openai_api_key="sk-secret")))


async def test_closing_closes_the_client(choose: Choose) -> None:
    chosen = await choose(Settings(openai_api_key="x"))
    await chosen.aclose()
    assert chosen._client is not None
    assert chosen._client.is_closed()
