"""TLS between bridge, services and server: who is let in, by which name, and what becomes of files that change."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from chatkit_grpc.environment import Address, Environment, SettingsError
from chatkit_grpc.v1 import thread_service_pb2

from bridge.app import create_app
from bridge.settings import Settings as BridgeSettings
from server.app import RunningServer, open_server
from server.auth.settings import AuthSettings
from server.limits.settings import LimitSettings
from server.settings import Settings as ServerSettings
from tests.authority import Authority
from tests.database import temporary_folder
from tests.issuer import hs256
from tests.page import SSE, body_of, events_of, say
from tests.runs_fixtures import Side, failure
from tests.scripted import ScriptedServer
from tests.system import ANY_PORT, BY_SECRET, open_bridge
from tests.unlimited import NO_LIMITS

ALICE = [("x-user-id", "alice")]


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


@pytest.fixture
def authority(folder: Path) -> Authority:
    return Authority(folder)


@asynccontextmanager
async def serving(
    database_url: str,
    files: tuple[Path, Path],
    client_ca: Path | None = None,
    auth: AuthSettings = BY_SECRET,
    limits: LimitSettings = NO_LIMITS,
) -> AsyncIterator[RunningServer]:
    settings = ServerSettings(
        database_url=database_url,
        grpc_listen=ANY_PORT,
        auth=auth,
        limits=limits,
        tls_certificate=files[0],
        tls_key=files[1],
        tls_client_ca=client_ca,
        run_grace_seconds=0,
    )
    async with open_server(settings, ScriptedServer) as server:
        yield server


@asynccontextmanager
async def calling(
    server: RunningServer, authority: Authority, files: tuple[Path, Path] | None = None, name: str = "localhost"
) -> AsyncIterator[Side]:
    """A client that trusts an authority, on connections of its own."""
    certificate, key = (path.read_bytes() for path in files) if files else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.path.read_bytes(), key, certificate)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", name)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials, options=options) as channel:
        yield Side(server, None, channel)  # type: ignore[arg-type] # nobody looks at it


def listing(side: Side, *metadata: tuple[str, str]) -> Any:
    return side.threads.ListThreads(thread_service_pb2.ListThreadsRequest(), metadata=metadata, timeout=5)


async def list_over(url: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        return await http.post("/api/chatkit", json=body_of("threads.list"), headers=headers)


def bridge_to(server: RunningServer, **changes: Any) -> Any:
    settings = BridgeSettings(shutdown_grace_seconds=0, call_timeout_seconds=2, **changes)
    return open_bridge(f"127.0.0.1:{server.port}", settings)


def by_token() -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {hs256()}")]


async def test_a_bridge_speaks_tls_and_verifies_the_servers_name(database_url: str, authority: Authority) -> None:
    files = authority.issue("server", "chat.internal", "127.0.0.1")
    token = f"Bearer {hs256()}"
    async with serving(database_url, files) as server:
        async with bridge_to(server, grpc_ca=authority.path) as (url, _):
            assert (await list_over(url, authorization=token)).status_code == 200
            async with httpx.AsyncClient(base_url=url, timeout=10) as http:
                answer = await http.post("/api/chatkit", json=say("tokens 2"), headers={**SSE, "authorization": token})
                assert events_of(answer)[0]["type"] == "thread.created"
        async with bridge_to(server, grpc_ca=authority.path, grpc_server_name="chat.internal") as (url, _):
            assert (await list_over(url, authorization=token)).status_code == 200
        # Nobody else may answer in its place, nor an authority that the bridge doesn't trust say who it is.
        async with bridge_to(server, grpc_ca=authority.path, grpc_server_name="elsewhere.internal") as (url, _):
            assert (await list_over(url, authorization=token)).status_code in {503, 504}
        async with bridge_to(server, grpc_ca=Authority(authority.path.parent, "other").path) as (url, _):
            assert (await list_over(url, authorization=token)).status_code in {503, 504}
        async with bridge_to(server) as (url, _):
            assert (await list_over(url, authorization=token)).status_code in {503, 504}


async def test_with_an_authority_for_clients_only_they_are_let_in(database_url: str, authority: Authority) -> None:
    files, own = authority.issue("server", "127.0.0.1"), authority.issue("bridge")
    stranger = Authority(authority.path.parent, "stranger").issue("bridge", file="forged")
    token = f"Bearer {hs256()}"
    async with serving(database_url, files, authority.path) as server:
        ours = {"grpc_ca": authority.path, "grpc_certificate": own[0], "grpc_key": own[1]}
        async with bridge_to(server, **ours) as (url, _):
            assert (await list_over(url, authorization=token)).status_code == 200
            # A certificate lets the bridge in, and makes nobody a user.
            assert (await list_over(url)).status_code == 401
            assert (await list_over(url, **{"x-user-id": "alice"})).status_code == 401
        for certificate, key in ((None, None), stranger):
            changes = {"grpc_ca": authority.path, "grpc_certificate": certificate, "grpc_key": key}
            async with bridge_to(server, **changes) as (url, _):
                assert (await list_over(url, authorization=token)).status_code in {503, 504}


@pytest.fixture
async def guarded(database_url: str, authority: Authority) -> AsyncIterator[RunningServer]:
    """A server that knows the service "worker.internal" and the bridge, by mistake as a service too."""
    auth = replace(BY_SECRET, service_certificates=("worker.internal", "bare", "spiffe://mesh/batch", "bridge"))
    files = authority.issue("server", "localhost", "127.0.0.1")
    async with serving(database_url, files, authority.path, auth) as server:
        yield server


@pytest.mark.parametrize(
    ("names", "is_service"),
    [
        (("worker", "worker.internal"), True),
        (("worker", "other.internal", "worker.internal"), True),
        (("batch", "spiffe://mesh/batch"), True),
        (("bare",), True),
        # Where there are alternative names the common one is no name.
        (("bare", "other.internal"), False),
        (("worker.internal.evil.test", "worker.internal.evil.test"), False),
        (("*.internal", "*.internal"), False),
    ],
)
async def test_a_service_is_known_by_its_certificate(
    guarded: RunningServer,
    authority: Authority,
    names: tuple[str, ...],
    is_service: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with calling(guarded, authority, authority.issue(*names, file="client")) as side:
        if is_service:
            assert await listing(side, *ALICE)
            reader = side.create("tokens 2")
            assert await reader.end() is grpc.StatusCode.OK
            assert reader.text == "t0 t1 "
            assert "acts for alice" in caplog.text
        else:
            assert (await failure(listing(side, *ALICE))).code == "PERMISSION_DENIED"
            reader = side.create("tokens 2")
            assert await reader.end() is grpc.StatusCode.PERMISSION_DENIED
        # Without a user it is nobody; with a token it is who the token says.
        assert (await failure(listing(side))).code == "UNAUTHENTICATED"
        assert await listing(side, *by_token())
        error = await failure(listing(side, *by_token(), *ALICE))
        assert error.code == "PERMISSION_DENIED"


async def test_a_service_with_a_certificate_reads_of_all_users_if_it_names_none(
    guarded: RunningServer, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def reading(side: Side, *metadata: tuple[str, str]) -> Any:
        request = thread_service_pb2.ListAllFeedbackRequest()
        return side.threads.ListAllFeedback(request, metadata=metadata, timeout=5)

    async with calling(guarded, authority, authority.issue("worker", "worker.internal")) as side:
        assert (await failure(reading(side, *ALICE))).code == "PERMISSION_DENIED"
        assert (await failure(reading(side, *by_token()))).code == "PERMISSION_DENIED"
        # What a bridge passes on is no service's.
        assert (await failure(reading(side, ("chatkit-host", "chat.test")))).code == "UNAUTHENTICATED"
        assert "reads of all users" not in caplog.text
        await reading(side)
        assert "worker.internal reads of all users" in caplog.text
    async with calling(guarded, authority, authority.issue("other", "other.internal", file="other")) as side:
        assert (await failure(reading(side))).code == "PERMISSION_DENIED"


@pytest.mark.parametrize("user", ["", "a b", "x" * 129, "?"])
async def test_a_service_must_name_somebody(guarded: RunningServer, authority: Authority, user: str) -> None:
    async with calling(guarded, authority, authority.issue("worker", "worker.internal")) as side:
        assert (await failure(listing(side, ("x-user-id", user)))).code == "INVALID_REQUEST"


async def test_a_certificate_without_a_name_is_no_service(
    database_url: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_CERTIFICATES", "worker.internal, ,")
    env = Environment()
    names = AuthSettings.read(env).service_certificates
    assert names == ("worker.internal",)
    # Nor if somebody names nobody all the same.
    auth = replace(BY_SECRET, service_certificates=(*names, ""))
    async with (
        serving(database_url, authority.issue("server", "localhost"), authority.path, auth) as server,
        calling(server, authority, authority.issue("", file="nameless")) as side,
    ):
        assert (await failure(listing(side, *ALICE))).code == "UNAUTHENTICATED"


async def test_a_page_doesnt_become_a_service_by_the_bridges_certificate(
    guarded: RunningServer, authority: Authority
) -> None:
    own = authority.issue("bridge")
    ours = {"grpc_ca": authority.path, "grpc_certificate": own[0], "grpc_key": own[1]}
    async with bridge_to(guarded, **ours) as (url, _):
        assert (await list_over(url, **{"x-user-id": "alice"})).status_code == 401


async def test_the_limits_of_a_user_hold_for_services_too(database_url: str, authority: Authority) -> None:
    auth = replace(BY_SECRET, service_certificates=("bare",))
    limits = replace(NO_LIMITS, rate_limit_calls=2, rate_limit_window=600)
    files = authority.issue("server", "localhost")
    async with (
        serving(database_url, files, authority.path, auth, limits) as server,
        calling(server, authority, authority.issue("bare")) as side,
    ):
        for _ in range(2):
            await listing(side, *ALICE)
        assert (await failure(listing(side, *ALICE))).code == "RATE_LIMITED"


def replace_file(old: Path, new: Path) -> None:
    """As those who renew certificates do: never half a file."""
    beside = old.with_suffix(".new")
    shutil.copy(new, beside)
    os.replace(beside, old)  # noqa: PTH105 # the same


async def test_new_files_are_used_for_new_connections_and_the_old_ones_go_on(
    database_url: str, authority: Authority, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = authority.issue("server", "localhost")
    async with serving(database_url, files) as server, calling(server, authority) as before:
        assert await listing(before, *by_token())
        new = authority.issue("server", "renewed.internal", file="renewed")
        # Half of a new pair is no reason to fail, and neither is nonsense.
        replace_file(files[0], new[0])
        async with calling(server, authority) as side:
            assert await listing(side, *by_token())
        assert "the new certificate can't be used: TLS_CERTIFICATE, TLS_KEY: expected" in caplog.text
        replace_file(files[1], new[1])
        async with calling(server, authority, name="renewed.internal") as side:
            assert await listing(side, *by_token())
        async with calling(server, authority) as side:
            assert (await failure(listing(side))).code == "UNAVAILABLE"
        files[0].unlink()
        async with calling(server, authority, name="renewed.internal") as side:
            assert await listing(side, *by_token())
        assert await listing(before, *by_token())


async def test_an_authority_for_clients_can_be_replaced(database_url: str, authority: Authority, folder: Path) -> None:
    other = Authority(folder, "other")
    accepted = folder / "clients.pem"
    shutil.copy(authority.path, accepted)
    async with serving(database_url, authority.issue("server", "localhost"), accepted) as server:
        newcomer = other.issue("bare", file="newcomer")
        token = by_token()[0]
        async with calling(server, authority, newcomer) as side:
            assert (await failure(listing(side, token))).code == "UNAVAILABLE"
        replace_file(accepted, other.path)
        async with calling(server, authority, newcomer) as side:
            assert await listing(side, token)
        # One that was cut off is no reason to let nobody in.
        accepted.write_text("")
        async with calling(server, authority, newcomer) as side:
            assert await listing(side, token)
        async with calling(server, authority, authority.issue("bare", file="former")) as side:
            assert (await failure(listing(side, token))).code == "UNAVAILABLE"


def problem_of(settings: ServerSettings | BridgeSettings) -> str:
    with pytest.raises(SettingsError) as caught:
        settings.check()
    return str(caught.value)


ABROAD = Address("0.0.0.0", 50051)
DEVELOPMENT = ServerSettings(environment="development")
CERTIFICATE = Path("/certificate.pem")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (replace(DEVELOPMENT, grpc_listen=ABROAD), "GRPC_LISTEN: tokens would travel to 0.0.0.0:50051 in plaintext"),
        (replace(DEVELOPMENT, grpc_listen=Address("::", 1)), "GRPC_LISTEN: tokens would travel to [::]:1 in plaintext"),
        (replace(DEVELOPMENT, grpc_listen=Address("chat.internal", 1)), "GRPC_LISTEN: "),
        (replace(DEVELOPMENT, tls_certificate=CERTIFICATE), "TLS_KEY: expected it beside the other one"),
        (replace(DEVELOPMENT, tls_key=CERTIFICATE), "TLS_CERTIFICATE: expected it beside the other one"),
        (replace(DEVELOPMENT, tls_client_ca=CERTIFICATE), "TLS_CERTIFICATE: TLS_CLIENT_CA needs"),
        (replace(DEVELOPMENT, auth=AuthSettings(service_certificates=("a",))), "TLS_CLIENT_CA: SERVICE_CERTIFICATES"),
        (
            replace(DEVELOPMENT, auth=AuthSettings(better_auth_url="http://login.internal")),
            "BETTER_AUTH_URL: expected https",
        ),
        (
            replace(DEVELOPMENT, auth=AuthSettings(better_auth_url="https://a.test", jwks_url="http://b.test/jwks")),
            "JWKS_URL: expected https",
        ),
        *(
            (BridgeSettings(grpc_target=target), f"GRPC_TARGET: tokens would travel to {target} in plaintext")
            for target in (
                "chat.internal:50051",
                "10.0.0.1:50051",
                "[2001:db8::1]:50051",
                "dns:///chat.internal:50051",
                "dns:chat.internal:50051",
                "ipv4:127.0.0.1:50051,10.0.0.2:50051",
                "ipv6:[2001:db8::1]:50051",
                "dns://8.8.8.8/localhost:50051",
                "dns:///10.0.0.2:50051?/localhost:1",
                "dns:///10.0.0.2:50051#/localhost:1",
                "ipv4:10.0.0.2:50051,/127.0.0.1:1",
                "ipv4:10.0.0.2:50051?/127.0.0.1:1",
                "xds:///localhost:50051",
                "localhost",
                "",
            )
        ),
        (BridgeSettings(grpc_certificate=CERTIFICATE, grpc_ca=CERTIFICATE), "GRPC_KEY: expected it beside"),
        (BridgeSettings(grpc_key=CERTIFICATE, grpc_ca=CERTIFICATE), "GRPC_CERTIFICATE: expected it beside"),
        (BridgeSettings(grpc_server_name="chat.internal"), "GRPC_CA: expected who issues"),
    ],
)
def test_what_isnt_safe_or_doesnt_go_together_is_refused(
    settings: ServerSettings | BridgeSettings, problem: str
) -> None:
    assert problem_of(settings).startswith(problem)


@pytest.mark.parametrize(
    "settings",
    [
        replace(DEVELOPMENT, grpc_listen=ABROAD, allow_plaintext=True),
        replace(DEVELOPMENT, grpc_listen=ABROAD, tls_certificate=CERTIFICATE, tls_key=CERTIFICATE),
        replace(DEVELOPMENT, grpc_listen=Address("::1", 1)),
        replace(DEVELOPMENT, auth=AuthSettings(better_auth_url="http://localhost:3000")),
        replace(DEVELOPMENT, allow_plaintext=True, auth=AuthSettings(better_auth_url="http://login.internal")),
        BridgeSettings(grpc_target="chat.internal:50051", allow_plaintext=True),
        BridgeSettings(grpc_target="chat.internal:50051", grpc_ca=CERTIFICATE),
        *(
            BridgeSettings(grpc_target=target)
            for target in (
                "localhost:50051",
                "[::1]:50051",
                "unix:/run/chat.sock",
                "dns:///localhost:50051",
                "ipv4:127.0.0.1:50051,127.0.0.2:50051",
                "ipv6:[::1]:50051",
            )
        ),
    ],
)
def test_what_is_safe_is_taken(settings: ServerSettings | BridgeSettings) -> None:
    settings.check()


async def test_files_that_cant_be_used_are_named_at_start(
    database_url: str, authority: Authority, folder: Path
) -> None:
    (good, key), (_, other_key) = authority.issue("a"), authority.issue("b")
    nonsense, missing = folder / "nonsense", folder / "missing"
    nonsense.write_text("no PEM")
    for files, client_ca, problem in [
        ((missing, key), None, f"TLS_CERTIFICATE: can't read {missing}: No such file"),
        ((good, missing), None, f"TLS_KEY: can't read {missing}: No such file"),
        ((good, other_key), None, "TLS_CERTIFICATE, TLS_KEY: expected a certificate chain and its"),
        ((nonsense, key), None, "TLS_CERTIFICATE, TLS_KEY: expected"),
        ((good, key), missing, f"TLS_CLIENT_CA: can't read {missing}"),
        ((good, key), nonsense, "TLS_CLIENT_CA: expected certificates as PEM"),
    ]:
        with pytest.raises(SettingsError) as caught:
            async with serving(database_url, files, client_ca):
                pass
        assert str(caught.value).startswith(problem)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"grpc_ca": missing}, f"GRPC_CA: can't read {missing}"),
        ({"grpc_ca": nonsense}, "GRPC_CA: expected PEM in"),
        ({"grpc_ca": good, "grpc_certificate": good, "grpc_key": missing}, "GRPC_KEY: can't read"),
    ]
    for changes, problem in wrong:
        with pytest.raises(SettingsError) as caught:
            create_app(BridgeSettings(**changes))
        assert str(caught.value).startswith(problem)
