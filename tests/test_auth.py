"""Who is let in: every RPC asks, services act for users, development knows everybody, production nobody by default."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from chatkit_grpc.environment import SettingsError
from chatkit_grpc.errors import from_rpc_error
from chatkit_grpc.services import SERVICES
from chatkit_grpc.v1 import access_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from server.app import open_server
from server.auth.access import RULES, rules
from server.auth.settings import AuthSettings
from server.context import Auth
from server.settings import Settings
from tests.database import execute
from tests.issuer import AUDIENCE, SECRET, hs256
from tests.scripted import ScriptedServer
from tests.system import ANY_PORT, BY_SECRET, IMPATIENT, PRODUCTION, System, open_system
from tests.test_tokens import answer

METHODS: list[MethodDescriptor] = [method for service in SERVICES.values() for method in service.methods]
SERVICES_TOO = replace(BY_SECRET, service_audience="https://services.test", service_scope="chat:act")


@pytest.fixture
async def production(database_url: str) -> AsyncIterator[System]:
    async with open_system(database_url, ScriptedServer, server=PRODUCTION) as system:
        yield system


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_each_rpc_says_who_may_call_it(method: MethodDescriptor) -> None:
    assert RULES[f"/{method.containing_service.full_name}/{method.name}"] != access_pb2.ACCESS_UNSPECIFIED


def service_without_rules() -> ServiceDescriptor:
    """A service as one forgets to protect it."""
    file = descriptor_pb2.FileDescriptorProto(name="forgotten.proto", package="forgotten", syntax="proto3")
    file.message_type.add(name="Nothing")
    method = file.service.add(name="Forgotten").method.add(name="Do")
    method.input_type = method.output_type = ".forgotten.Nothing"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("forgotten.Forgotten")


def test_an_rpc_that_does_not_say_has_no_rule() -> None:
    assert rules([service_without_rules()]) == {}


@pytest.mark.parametrize("settings", [PRODUCTION, IMPATIENT], ids=["production", "development"])
async def test_an_rpc_without_a_rule_is_closed_to_everybody(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(RULES, "/chatkit_grpc.v1.ThreadService/ListThreads")
    async with open_system(database_url, ScriptedServer, server=settings) as system:
        tokens = [f"Bearer {hs256()}"] if settings is PRODUCTION else []
        error = await answer(system.channel, *tokens)
        assert error is not None
        assert error.code == "PERMISSION_DENIED"


async def test_a_service_that_is_added_past_the_adapter_is_closed_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    async def serve(_body: bytes, _call: object) -> bytes:
        called.append(1)
        return b""

    server_class: Any = type(grpc.aio.server())
    start = server_class.start

    async def add_and_start(server: Any) -> None:
        handlers: Any = {"Do": grpc.unary_unary_rpc_method_handler(serve)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("forgotten.Forgotten", handlers)])
        await start(server)

    monkeypatch.setattr(server_class, "start", add_and_start)
    async with open_system(database_url, ScriptedServer, server=PRODUCTION) as system:
        for metadata, status in (
            ((), grpc.StatusCode.UNAUTHENTICATED),
            ((("authorization", f"Bearer {hs256()}"),), grpc.StatusCode.PERMISSION_DENIED),
        ):
            call: Any = system.channel.unary_unary("/forgotten.Forgotten/Do")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", metadata=metadata)
            assert caught.value.code() is status
    assert not called


async def test_what_is_not_there_is_unknown_to_users_and_closed_to_strangers(production: System) -> None:
    call: Any = production.channel.unary_unary("/chatkit_grpc.v1.ThreadService/DropAll")
    for metadata, status in (
        ((), grpc.StatusCode.UNAUTHENTICATED),
        ((("authorization", f"Bearer {hs256()}"),), grpc.StatusCode.UNIMPLEMENTED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", metadata=metadata)
        assert caught.value.code() is status


async def test_what_a_stranger_calls_is_in_no_log(production: System, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "server"):
        for path in ("/x\nINFO server.auth.acting: mailer acts for alice", "/" + "y" * 20_000):
            call: Any = production.channel.unary_unary(path)
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"")
    assert "an unknown RPC failed: UNAUTHENTICATED" in caplog.text
    assert "mailer" not in caplog.text
    assert "yyy" not in caplog.text


@pytest.mark.parametrize("kind", ["unary_stream", "stream_unary", "stream_stream"])
async def test_a_stranger_is_sent_away_however_he_calls(production: System, kind: str) -> None:
    call: Any = getattr(production.channel, kind)("/chatkit_grpc.v1.ThreadService/ListThreads")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"").read() if kind == "unary_stream" else await (
            call() if kind == "stream_unary" else call().read()
        )
    assert from_rpc_error(caught.value).code == "UNAUTHENTICATED"


REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.mark.parametrize(
    ("settings", "is_open"),
    [
        (PRODUCTION, False),
        (replace(PRODUCTION, grpc_reflection=True), True),
        (IMPATIENT, True),
        (replace(IMPATIENT, grpc_reflection=False), False),
    ],
    ids=["production", "production, allowed", "development", "development, forbidden"],
)
async def test_health_is_always_open_and_reflection_where_it_is_allowed(
    database_url: str, settings: Settings, *, is_open: bool
) -> None:
    async with open_system(database_url, ScriptedServer, server=settings) as system:
        health: Any = system.channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await health(b"", timeout=10)
        reflection: Any = system.channel.stream_stream(REFLECTION)
        call = reflection(iter([b"\x3a\x00"]))  # list_services
        if is_open:
            assert b"chatkit_grpc.v1.ThreadService" in await call.read()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}


# Services


@pytest.fixture
async def with_services(database_url: str) -> AsyncIterator[System]:
    async with open_system(database_url, ScriptedServer, server=replace(PRODUCTION, auth=SERVICES_TOO)) as system:
        yield system


SERVICE_TOKENS: dict[str, dict[str, Any]] = {
    "audience": {"aud": "https://services.test"},
    "one of two audiences": {"aud": [AUDIENCE, "https://services.test"]},
    "scope": {"scope": "other chat:act"},
    "list of scopes": {"scp": ["chat:act"]},
    "scp beside a scope that is null": {"scope": [None], "scp": "chat:act"},
}


@pytest.mark.parametrize("case", SERVICE_TOKENS)
async def test_a_service_acts_for_a_user_and_it_is_logged(
    with_services: System, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = hs256(sub="mailer", **SERVICE_TOKENS[case])
    with caplog.at_level(logging.INFO, "server.auth"):
        assert await answer(with_services.channel, f"Bearer {token}", x_user_id="alice") is None
    assert "mailer acts for alice" in caplog.text
    assert token not in caplog.text
    # For itself it is a user where its token is for users too.
    for_itself = await answer(with_services.channel, f"Bearer {token}")
    if case == "audience":
        assert for_itself is not None
        assert (for_itself.code, "x-user-id" in for_itself.message) == ("PERMISSION_DENIED", True)
    else:
        assert for_itself is None


NO_SERVICES: dict[str, dict[str, Any]] = {
    "a user": {},
    "a user who names himself": {"sub": "alice"},
    "part of a scope": {"scope": "chat:act:not chat"},
    "scope is an object": {"scope": {"chat:act": True}},
    "scope is true": {"scope": True},
    "audience within a text": {"aud": [AUDIENCE, "https://services.test/x"]},
    "the service's words elsewhere": {"scopes": "chat:act", "audience": "https://services.test"},
}


@pytest.mark.parametrize("case", NO_SERVICES)
async def test_whoever_is_no_service_is_refused_and_not_ignored(with_services: System, case: str) -> None:
    error = await answer(with_services.channel, f"Bearer {hs256(**NO_SERVICES[case])}", x_user_id="alice")
    assert error is not None
    assert (error.code, error.http_status) == ("PERMISSION_DENIED", 403)


@pytest.mark.parametrize("sub", ["", "a b", "mailer\nINFO bob acts for alice"])
async def test_a_service_without_a_name_for_the_log_is_refused(
    with_services: System, sub: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "server.auth"):
        error = await answer(with_services.channel, f"Bearer {hs256(sub=sub, scope='chat:act')}", x_user_id="alice")
    assert error is not None
    assert (error.code, "acts for" in caplog.text) == ("UNAUTHENTICATED", False)


async def test_a_stranger_who_names_a_user_badly_is_a_stranger(production: System) -> None:
    for authorization in ((), ("Bearer x",)):
        error = await answer(production.channel, *authorization, x_user_id="a b")
        assert error is not None
        assert error.code == "UNAUTHENTICATED"


@pytest.mark.parametrize("claims", [{"aud": [AUDIENCE, "null"]}, {"scope": "None"}, {"scope": ""}, {"scp": [None]}])
async def test_without_the_settings_nobody_is_a_service(production: System, claims: dict[str, Any]) -> None:
    error = await answer(production.channel, f"Bearer {hs256(**claims)}", x_user_id="bob")
    assert error is not None
    assert error.code == "PERMISSION_DENIED"


@pytest.mark.parametrize("user", ["", "a b", "x" * 129, "a'--"])
async def test_a_user_that_cannot_be_is_refused(with_services: System, user: str) -> None:
    error = await answer(with_services.channel, f"Bearer {hs256(scope='chat:act')}", x_user_id=user)
    assert error is not None
    assert error.code == "INVALID_REQUEST"


async def test_a_page_that_names_another_user_is_refused(production: System) -> None:
    response = await production.http.post(
        "/api/chatkit",
        json={"type": "threads.list", "params": {}},
        headers={"authorization": f"Bearer {hs256()}", "x-user-id": "bob"},
    )
    assert (response.status_code, response.json()["error"]["code"]) == (403, "PERMISSION_DENIED")


async def test_a_page_without_a_token_is_told_which_kind_is_wanted(production: System) -> None:
    for token, cause in (("", "missing"), (hs256(exp=1), "expired"), ("x", "invalid")):
        response = await production.http.post(
            "/api/chatkit",
            json={"type": "threads.list", "params": {}},
            headers={"authorization": f"Bearer {token}"} if token else {},
        )
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert response.json()["error"]["details"]["cause"] == cause


async def test_the_assistant_knows_who_asks_and_for_whom(database_url: str) -> None:
    seen: list[Auth] = []

    class Curious(ScriptedServer):
        async def respond(self, thread: Any, input_user_message: Any, context: Any) -> AsyncIterator[Any]:
            seen.append(context.auth)
            async for event in super().respond(thread, input_user_message, context):
                yield event

    async with open_system(database_url, Curious, server=replace(PRODUCTION, auth=SERVICES_TOO)) as system:
        body = {
            "type": "threads.create",
            "params": {"input": {"content": [{"type": "input_text", "text": "tokens 1"}]}},
        }
        for token, others in (
            (hs256(email="alice@example.com"), {}),
            (hs256(sub="mailer", scope="chat:act"), {"x-user-id": "bob"}),
        ):
            headers = {"authorization": f"Bearer {token}", **others}
            assert "t0" in (await system.http.post("/api/chatkit", json=body, headers=headers)).text
    assert [(auth.user_id, auth.method, auth.service) for auth in seen] == [
        ("alice", "token", None),
        ("bob", "service", "mailer"),
    ]
    assert [auth.claims.get("email") for auth in seen] == ["alice@example.com", None]


# Development


@pytest.fixture
async def development(database_url: str) -> AsyncIterator[System]:
    async with open_system(database_url, ScriptedServer, server=replace(IMPATIENT, auth=BY_SECRET)) as system:
        yield system


async def test_development_takes_tokens_too_and_a_bad_one_is_no_way_in(development: System) -> None:
    assert await answer(development.channel) is None
    assert await answer(development.channel, f"Bearer {hs256()}") is None
    error = await answer(development.channel, "Bearer x")
    assert error is not None
    assert error.code == "UNAUTHENTICATED"


async def test_development_without_keys_refuses_tokens_with_a_reason(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer) as system:
        error = await answer(system.channel, f"Bearer {hs256()}")
        assert error is not None
        assert (error.code, "BETTER_AUTH_URL" in error.message) == ("UNAUTHENTICATED", True)


USERS = 'create table "user" (id text primary key, "createdAt" timestamptz not null)'
FIRST_USERS: dict[str, tuple[list[str], str]] = {
    "two": ([USERS, "insert into \"user\" values ('second', '2026-02-01'), ('first', '2026-01-01')"], "first"),
    "a number": (
        ['create table "user" (id int, "createdAt" timestamptz)', 'insert into "user" values (7, now())'],
        "7",
    ),
    "none": ([USERS], "dev-user"),
    "one without an id of ours": ([USERS, "insert into \"user\" values ('not an id', now())"], "dev-user"),
    "somebody else's table": (['create table "user" (id text)'], "dev-user"),
    "no table": ([], "dev-user"),
}


@pytest.mark.parametrize("case", FIRST_USERS)
async def test_development_without_a_token_is_the_first_user_of_the_database(
    database_url: str, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    statements, expected = FIRST_USERS[case]
    await execute(database_url, *statements)
    async with open_system(database_url, ScriptedServer):
        assert f"ENVIRONMENT=development: whoever calls without a token is {expected}\n" in caplog.text


# Start-up

GOOD = {"better_auth_url": "https://login.test"}
BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "BETTER_AUTH_URL: expected where Better Auth is"),
    "an example": (
        {"better_auth_secret": "change-me-change-me-change-me-change-me"},
        "BETTER_AUTH_SECRET: expected a sec",
    ),
    "Better Auth's own": ({"better_auth_secret": "better-auth-secret-12345678901234567890"}, "BETTER_AUTH_SECRET:"),
    "your secret": ({"better_auth_secret": "your-secret-key-here-0123456789abcdef"}, "BETTER_AUTH_SECRET: expected a"),
    "digits": ({"better_auth_secret": "0123456789abcdef0123456789abcdef"}, "BETTER_AUTH_SECRET: expected a secret"),
    "says what it is": ({"better_auth_secret": "a-jwt-Secret-with-at-least-32-characters"}, "BETTER_AUTH_SECRET: exp"),
    "one letter": ({"better_auth_secret": "a" * 40}, "BETTER_AUTH_SECRET: expected a secret of your own"),
    "few letters": ({"better_auth_secret": "abcabc" * 10}, "BETTER_AUTH_SECRET: expected a secret of your own"),
    "an example beside keys": ({**GOOD, "better_auth_secret": "EXAMPLE" * 6 + "xyz"}, "BETTER_AUTH_SECRET: expected"),
    "no issuer": ({"better_auth_secret": SECRET, "jwt_audience": "x", "jwt_issuer": None}, "JWT_ISSUER: expected who"),
    "no audience": ({"jwks_url": "https://x/keys", "jwt_issuer": "x", "jwt_audience": None}, "JWT_AUDIENCE: expected"),
}
BAD_ANYWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "31 bytes": ({"better_auth_secret": SECRET[:31]}, "BETTER_AUTH_SECRET: expected 32 bytes or more"),
    "sessions without a URL": (
        {"better_auth_secret": SECRET, "better_auth_sessions": True},
        "BETTER_AUTH_URL: BETTER_AUTH_SESSIONS needs it",
    ),
    "sessions without a secret": ({**GOOD, "better_auth_sessions": True}, "BETTER_AUTH_SECRET: BETTER_AUTH_SESSIONS"),
    "users that are services": (
        {**GOOD, "service_audience": "https://login.test"},
        "SERVICE_AUDIENCE: expected another",
    ),
}


@pytest.mark.parametrize("case", [*BAD_SETTINGS, *BAD_ANYWHERE])
async def test_production_does_not_start_with_it_and_says_what_to_set(database_url: str, case: str) -> None:
    values, said = (BAD_SETTINGS | BAD_ANYWHERE)[case]
    values = {"jwt_issuer": "x", "jwt_audience": "y", **values} if "better_auth_secret" in values else values
    settings = Settings(database_url=database_url, grpc_listen=ANY_PORT, auth=AuthSettings(**values))
    with pytest.raises(SettingsError) as caught:
        async with open_server(settings, ScriptedServer):
            pytest.fail("expected a refusal")
    assert said in str(caught.value)
    assert str(values.get("better_auth_secret")) not in str(caught.value)


@pytest.mark.parametrize("environment", ["production", "staging", "dev", "development-2", "test"])
async def test_only_development_is_development(database_url: str, environment: str) -> None:
    settings = replace(PRODUCTION, environment=environment)
    async with open_system(database_url, ScriptedServer, server=settings) as system:
        for metadata in ({}, {"x_user_id": "alice"}):
            error = await answer(system.channel, **metadata)
            assert error is not None
            assert error.code == "UNAUTHENTICATED"


async def test_what_is_wrong_in_development_too(database_url: str) -> None:
    for values, said in BAD_ANYWHERE.values():
        settings = replace(IMPATIENT, database_url=database_url, grpc_listen=ANY_PORT, auth=AuthSettings(**values))
        with pytest.raises(SettingsError, match=said):
            async with open_server(settings, ScriptedServer):
                pytest.fail("expected a refusal")


BAD_ENVIRONMENT = {
    ("BETTER_AUTH_URL", "login.test"): "expected a URL",
    ("BETTER_AUTH_URL", "https://[::1"): "expected a URL",
    ("BETTER_AUTH_URL", "https://login.test:99999"): "expected a URL",
    ("BETTER_AUTH_URL", "https://login.test/api/auth/"): "without /api/auth",
    ("BETTER_AUTH_URL", "https://login.test/?x"): "expected where Better Auth is",
    ("BETTER_AUTH_URL", "https://me:hunter2@login.test"): "without a user and password",
    ("JWKS_URL", "file:///etc/passwd"): "expected a URL",
    ("JWKS_URL", "https://me:hunter2@login.test/keys"): "without a user and password",
    ("MODEL_BASE_URL", "https://[::1"): "expected a URL",
    ("ALLOWED_ORIGINS", "*"): "a wildcard would let any site act",
    ("BETTER_AUTH_SESSIONS", "maybe"): "BETTER_AUTH_SESSIONS",
    ("GRPC_REFLECTION", "perhaps"): "GRPC_REFLECTION",
    ("JWT_USER_CLAIM", ""): "JWT_USER_CLAIM",
}


@pytest.mark.parametrize(("name", "value"), BAD_ENVIRONMENT)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    said = BAD_ENVIRONMENT[name, value]
    monkeypatch.setenv("ENVIRONMENT", "development")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        Settings.from_env()
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


BAD_ORIGINS = [
    *("https://a.test/", "https://a.test/x", "a.test", "null", "ftp://a.test", "https://A.test", "https://*.a.test"),
    *("https://u@a.test", "https://a.test:x", "https://"),
]


@pytest.mark.parametrize("origins", BAD_ORIGINS)
def test_an_origin_is_scheme_and_host(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", f"https://b.test,{origins}")
    with pytest.raises(SettingsError, match="ALLOWED_ORIGINS: expected origins as"):
        Settings.from_env()


def test_a_url_with_a_slash_at_its_end_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BETTER_AUTH_URL", "https://login.test/")
    monkeypatch.setenv("ALLOWED_ORIGINS", "https://a.test, http://b.test:3000")
    auth = Settings.from_env().auth
    assert (auth.key_set_url, auth.issuer) == ("https://login.test/api/auth/jwks", "https://login.test")
    assert auth.allowed_origins == ("https://a.test", "http://b.test:3000")
