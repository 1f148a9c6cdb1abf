"""Dictation through the front door: what is sent to a transcriber, and what its failures mean to whoever spoke."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from chatkit.types import AudioInput
from chatkit_grpc.environment import SettingsError

from server.assistant import create_assistant
from server.context import Auth, RequestContext
from server.dictation import Dictation
from server.dictation_settings import OPENAI_MODEL, DictationSettings, Transcriber, choose_transcriber
from server.limits.settings import LimitSettings
from server.settings import Settings
from server.store import PostgresStore
from tests.fake_transcriber import SECRET_WORDS, FakeTranscriber, Hear, Junk, Refuse, Step
from tests.page import body_of, post, say
from tests.scripted import ScriptedServer
from tests.system import IMPATIENT, System, open_system

AUDIO = b"\x1aE\xdf\xa3 not really webm \x00\xff\r\n--boundary\r\n"
KEY = "sk-of-the-transcriber"


def settings_for(fake: FakeTranscriber, seconds: float = 5.0, **limits: Any) -> Settings:
    dictation = DictationSettings(
        transcription_base_url=fake.base_url,
        transcription_model="listen-1",
        transcription_api_key=KEY,
        transcription_timeout_seconds=seconds,
    )
    return replace(IMPATIENT, dictation=dictation, openai_api_key=None, limits=replace(IMPATIENT.limits, **limits))


@asynccontextmanager
async def dictating(
    database_url: str, *steps: Step, seconds: float = 5.0, **limits: Any
) -> AsyncIterator[tuple[System, FakeTranscriber]]:
    """A system with the default assistant, and the transcriber that it asks."""
    async with FakeTranscriber(steps or (Hear("Hello there."),)) as fake:
        settings = settings_for(fake, seconds, **limits)

        def factory(store: PostgresStore) -> Any:
            return create_assistant(store, settings)

        async with open_system(database_url, factory, server=settings) as system:
            yield system, fake


async def dictate(
    system: System, audio: bytes = AUDIO, mime_type: str = "audio/webm;codecs=opus", **headers: str
) -> httpx.Response:
    encoded = base64.b64encode(audio).decode()
    body = body_of("input.transcribe", audio_base64=encoded, mime_type=mime_type)
    return await post(system, body, **{name.replace("_", "-"): value for name, value in headers.items()})


TYPES = {
    "audio/webm;codecs=opus": ("recording.webm", "audio/webm"),
    "audio/webm": ("recording.webm", "audio/webm"),
    "audio/mp4": ("recording.mp4", "audio/mp4"),
    "audio/mp4; codecs=mp4a.40.2": ("recording.mp4", "audio/mp4"),
    "audio/ogg; codecs=opus": ("recording.ogg", "audio/ogg"),
    "AUDIO/OGG": ("recording.ogg", "audio/ogg"),
    "audio/wav": ("recording.wav", "audio/wav"),
    "audio/x-m4a": ("recording.m4a", "audio/x-m4a"),
    "audio/mpeg": ("recording.mp3", "audio/mpeg"),
}
BAD_TYPES = ["", "text/plain", "audio", "audio/", "audio/midi", "image/webm", "audio/webm\r\nX: y", "../../audio/webm"]


async def test_what_a_browser_records_is_sent_as_a_file_of_its_kind(database_url: str) -> None:
    async with dictating(database_url) as (system, fake):
        for mime_type, (name, sent_type) in TYPES.items():
            response = await dictate(system, mime_type=mime_type)
            assert (response.status_code, response.json()) == (200, {"text": "Hello there."}), mime_type
            heard = fake.heard[-1]
            assert (heard.file_name, heard.mime_type, heard.audio) == (name, sent_type, AUDIO)
        heard = fake.heard[0]
        assert heard.path == "/v1/audio/transcriptions"
        assert heard.headers["authorization"] == f"Bearer {KEY}"
        assert heard.fields == {"model": "listen-1"}
        for mime_type in BAD_TYPES:
            refused = await dictate(system, mime_type=mime_type)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (400, "INVALID_REQUEST"), mime_type
            assert error["message"].startswith("$.params.mime_type: expected audio/webm, audio/ogg, ")
        nothing = (await dictate(system, b"")).json()["error"]
        assert nothing["message"] == "$.params.audio_base64: expected a recording, got nothing"
        assert len(fake.heard) == len(TYPES)


LANGUAGES = {
    "de": "de",
    "de-CH": "de",
    "de-DE,de;q=0.9": "de",
    "nb-NO": "no",
    "zh-Hant-TW": "zh",
    "de-DE,de;q=0.9,en;q=0.8": None,
    "": None,
    "*": None,
    "tlh": None,
    "x-klingon": None,
    ";;;,,,": None,
}


async def test_the_language_is_named_where_the_page_names_one(database_url: str) -> None:
    async with dictating(database_url) as (system, fake):
        for header, language in LANGUAGES.items():
            assert (await dictate(system, accept_language=header)).status_code == 200
            assert fake.heard[-1].fields.get("language") == language, header


AGAIN = "Please try again in a moment."
FAILURES: dict[str, tuple[Step, int, str, str]] = {
    "bad key": (Refuse(401), 424, "TRANSCRIPTION_FAILED", "refused the server's credentials. Please tell whoever"),
    "forbidden": (Refuse(403), 424, "TRANSCRIPTION_FAILED", "refused the server's credentials. Please tell whoever"),
    "no such model": (Refuse(404), 424, "TRANSCRIPTION_FAILED", "does not know the server's model. Please tell"),
    "odd status": (Refuse(418), 424, "TRANSCRIPTION_FAILED", "did not accept the request (status 418)."),
    "no audio": (Refuse(400), 400, "INVALID_REQUEST", "$.params.audio_base64: expected a recording that can be under"),
    "too large": (Refuse(413), 413, "REQUEST_TOO_LARGE", "is larger than the transcription service takes."),
    "busy": (Refuse(429), 503, "TRANSCRIPTION_BUSY", f"is busy, or its quota is used up. {AGAIN}"),
    "broken": (Refuse(500), 503, "TRANSCRIPTION_BUSY", f"failed. {AGAIN}"),
    "cut": ("cut", 503, "TRANSCRIPTION_BUSY", f"can't be reached. {AGAIN}"),
    "redirect": (Refuse(302, {"location": "http://127.0.0.1:1/"}), 424, "TRANSCRIPTION_FAILED", ""),
    "no JSON": (Junk(b"<html>"), 424, "TRANSCRIPTION_FAILED", "did not give a proper answer"),
    "a page": (Junk(b"<html>", "text/html"), 424, "TRANSCRIPTION_FAILED", "did not give a proper answer"),
    "a list": (Junk(b"[1]"), 424, "TRANSCRIPTION_FAILED", "did not give a proper answer"),
    "a number": (Junk(b'{"text": 5}'), 424, "TRANSCRIPTION_FAILED", "did not give a proper answer"),
    "null": (Junk(b"null"), 424, "TRANSCRIPTION_FAILED", "did not give a proper answer"),
    "empty": (Junk(b""), 424, "TRANSCRIPTION_FAILED", "did not give a proper answer"),
}


async def test_each_failure_says_in_words_what_is_to_be_done(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with dictating(database_url) as (system, fake):
        for case, (step, status, code, said) in FAILURES.items():
            fake.then(step)
            response = await dictate(system)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (status, code), (case, error)
            assert said in error["message"], case
        fake.then(Hear("well again"))
        assert (await dictate(system)).json() == {"text": "well again"}
    assert SECRET_WORDS not in caplog.text
    assert KEY not in caplog.text
    assert "the transcription failed: AuthenticationError 401" in caplog.text


async def test_a_provider_that_is_busy_is_left_alone_and_says_until_when(database_url: str) -> None:
    async with dictating(database_url, Refuse(429, {"retry-after": "17"})) as (system, fake):
        began = time.monotonic()
        response = await dictate(system)
        assert time.monotonic() - began < 3
        assert (response.status_code, response.headers["retry-after"]) == (503, "17")
        # Nothing that says the user asked too often.
        assert not [name for name in response.headers if name.startswith("ratelimit")]
        assert len(fake.heard) == 1
        for odd in ("Wed, 21 Oct 2026 07:28:00 GMT", "-5", "nan", "inf", "x"):
            fake.then(Refuse(429, {"retry-after": odd}))
            assert (await dictate(system)).status_code == 503, odd


async def test_what_fails_for_a_moment_is_tried_again(database_url: str) -> None:
    async with dictating(database_url, Refuse(500), "cut", Hear("third time lucky")) as (system, fake):
        assert (await dictate(system)).json() == {"text": "third time lucky"}
        assert [heard.audio for heard in fake.heard] == [AUDIO] * 3
        fake.then(Refuse(503))
        await dictate(system)
        assert len(fake.heard) == 6
        fake.then(Refuse(401))
        await dictate(system)
        assert len(fake.heard) == 7


async def test_it_takes_no_longer_than_it_may(database_url: str) -> None:
    async with dictating(database_url, "hang", seconds=1) as (system, _):
        began = time.monotonic()
        response = await dictate(system)
        assert 0.8 < time.monotonic() - began < 4
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (503, "TRANSCRIPTION_BUSY")
        assert error["message"].startswith("The transcription service took ")
        # Others are served meanwhile.
        waiting = asyncio.create_task(dictate(system))
        assert (await post(system, body_of("threads.list"))).status_code == 200
        await waiting


async def test_a_provider_that_is_not_there_is_named_as_such(database_url: str) -> None:
    async with dictating(database_url) as (system, fake):
        fake._server.close()
        await fake._server.wait_closed()
        error = (await dictate(system)).json()["error"]
        assert (error["code"], "can't be reached" in error["message"]) == ("TRANSCRIPTION_BUSY", True)


async def test_odd_texts_come_whole(database_url: str) -> None:
    odd = {
        '{"text": "  hi \\u0000 there\\n"}': "hi  there",
        '{"text": ""}': "",
        '{"text": "\\ud83d\\ude00 \\ud83d"}': "😀 \ufffd",
        '{"text": "<b>&", "usage": {"type": "duration", "seconds": 3}}': "<b>&",
        '{"text": "a", "usage": null}': "a",
        '{"text": "a", "usage": {"total_tokens": "many"}}': "a",
        '{"text": "a", "usage": {"total_tokens": -5}}': "a",
    }
    async with dictating(database_url) as (system, fake):
        for body, text in odd.items():
            fake.then(Junk(body.encode()))
            assert (await dictate(system)).json() == {"text": text}, body


async def test_what_it_took_counts_towards_the_days_tokens(database_url: str) -> None:
    async with dictating(database_url, Hear("a", tokens=60), tokens_per_day=100) as (system, _):
        assert (await dictate(system)).status_code == 200
        assert (await dictate(system)).status_code == 200
        assert await system.server.database.fetchval("select tokens from token_usage") == 120
        for body in (body_of("input.transcribe", audio_base64="AAAA", mime_type="audio/webm"), say("hi")):
            refused = await post(system, body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "RATE_LIMITED")
            assert refused.json()["error"]["message"].startswith("The tokens for today are used up")


async def test_an_assistant_sees_what_it_took() -> None:
    async with FakeTranscriber((Hear("a", tokens=7),)) as fake:
        dictation = Dictation(Transcriber("m", 5, fake.base_url))
        context = RequestContext.of(Auth("alice", "development"))
        try:
            for _ in range(2):
                await dictation.transcribe(AudioInput(data=b"x", mime_type="audio/webm"), context)
        finally:
            await dictation.aclose()
        assert context.tokens_used == 14
        # Where it wants no key, it isn't sent one that means something.
        assert fake.heard[0].headers["authorization"] == "Bearer none"


async def test_a_recording_is_no_larger_than_a_request(database_url: str) -> None:
    async with dictating(database_url) as (system, fake):
        response = await dictate(system, b"x" * 4_000_000)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "REQUEST_TOO_LARGE")
        assert (await dictate(system, b"x" * 2_900_000)).status_code == 200
        assert len(fake.heard[-1].audio) == 2_900_000


# Whether there is any


async def test_without_a_transcriber_it_says_what_to_set(database_url: str) -> None:
    def factory(store: PostgresStore) -> Any:
        return create_assistant(store, replace(IMPATIENT, openai_api_key=None))

    async with open_system(database_url, factory) as system:
        response = await dictate(system)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "UNSUPPORTED")
        assert "OPENAI_API_KEY" in error["message"]
        assert "TRANSCRIPTION_BASE_URL" in error["message"]
        assert (await system.http.get("/api/chatkit/health")).json()["dictation"] is False


async def test_health_says_whether_there_is_a_microphone(database_url: str) -> None:
    class Deaf(ScriptedServer):
        takes_dictation = False

    async with dictating(database_url) as (system, _):
        assert (await system.http.get("/api/chatkit/health")).json()["dictation"] is True
    for factory, takes_it in ((ScriptedServer, True), (Deaf, False)):
        async with open_system(database_url, factory) as system:
            assert (await system.http.get("/api/chatkit/health")).json()["dictation"] is takes_it


def test_the_settings_choose_who_transcribes() -> None:
    def chosen(key: str | None = None, **settings: Any) -> Transcriber | None:
        return choose_transcriber(DictationSettings(**settings), key)

    assert chosen() is None
    assert chosen(transcription_model="m") is None
    assert chosen("sk-a") == Transcriber(OPENAI_MODEL, 25.0, None, "sk-a")
    assert chosen("sk-a", transcription_api_key="sk-b", transcription_model="m") == Transcriber("m", 25.0, None, "sk-b")
    # OpenAI's key goes to OpenAI only.
    url = "http://127.0.0.1:9000/v1/"
    assert chosen("sk-a", transcription_base_url=url, transcription_model="m") == Transcriber("m", 25.0, url, None)
    with pytest.raises(SettingsError, match="TRANSCRIPTION_MODEL: TRANSCRIPTION_BASE_URL is set"):
        chosen("sk-a", transcription_base_url=url)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRANSCRIPTION_BASE_URL", "host"),
        ("TRANSCRIPTION_BASE_URL", "https://me:hunter2@host/v1/"),
        ("TRANSCRIPTION_TIMEOUT_SECONDS", "0"),
        ("TRANSCRIPTION_TIMEOUT_SECONDS", "soon"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("ENVIRONMENT", "development")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        Settings.from_env()
    assert "hunter2" not in str(caught.value)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "development")
    for name, value in (("BASE_URL", "http://x/v1/"), ("MODEL", "m"), ("API_KEY", "k"), ("TIMEOUT_SECONDS", "7")):
        monkeypatch.setenv(f"TRANSCRIPTION_{name}", value)
    assert Settings.from_env().dictation == DictationSettings("http://x/v1/", "m", "k", 7.0)
    assert LimitSettings().call_deadline_seconds > DictationSettings().transcription_timeout_seconds
