"""`make run`: the whole system on this machine, server and bridge, until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from chatkit_grpc.environment import BRIDGE_LISTEN, Address, Environment, SettingsError
from chatkit_grpc.process import WITH_PARENT, bound_socket, refuse

from server.model_choice import choose_models
from server.settings import Settings

_START_LIMIT = 90.0
"""Seconds that a first start may take; it makes a database."""
_STOP_LIMIT = 15.0
"""Seconds after the grace that a process gets before it is killed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, and where it will be found."""

    settings: Settings
    bridge: Address
    environment: Mapping[str, str]

    @classmethod
    def from_env(cls) -> Plan:
        """Read the environment; development unless it says otherwise. Raises SettingsError."""
        os.environ.setdefault("ENVIRONMENT", "development")
        settings = Settings.from_env()
        env = Environment()
        bridge = env.address("BRIDGE_LISTEN", BRIDGE_LISTEN)
        env.check()
        for name, address in (("GRPC_LISTEN", settings.grpc_listen), ("BRIDGE_LISTEN", bridge)):
            if not address.port:
                raise SettingsError(f"{name}: expected a port other than 0, since the other half must find it")
            # Somebody else who listens there would be taken for us.
            bound_socket(name, address).close()
        target = os.environ.get("GRPC_TARGET") or str(_reachable(settings.grpc_listen))
        return cls(settings, bridge, {**os.environ, "GRPC_TARGET": target})

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        return f"http://{_reachable(self.bridge)}"


def _reachable(address: Address) -> Address:
    """An address to connect to, where one listens on all."""
    return Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host), address.port)  # noqa: S104


class Half:
    """One of the two processes."""

    def __init__(self, module: str, plan: Plan) -> None:
        self.module = module
        self._plan = plan
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it apart from this terminal, so that Ctrl-C reaches it only by way of us and in the right order.

        It ends when its standard input does, and so doesn't outlive us.
        """
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self.module, WITH_PARENT),
            env=self._plan.environment,
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.returncode

    async def wait(self) -> int:
        """Wait until it ends."""
        return 0 if self._process is None else await self._process.wait()

    async def stop(self) -> None:
        """Ask it to end; kill it where it doesn't."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(self._plan.settings.shutdown_grace_seconds + _STOP_LIMIT):
                await self._process.wait()
        except TimeoutError:
            _say(f"The {self.module} does not stop; killing it.")
            self._process.kill()
            await self._process.wait()


async def run(plan: Plan) -> int:
    """Start both halves, say where they are, and stop them when a signal comes or one of them ends."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server, bridge = Half("server", plan), Half("bridge", plan)
    stopping = asyncio.create_task(stop.wait())
    try:
        began = time.monotonic()
        _say("Starting database, server and bridge …")
        await server.start()
        await bridge.start()
        if await _until_healthy(plan, (server, bridge), stopping):
            _say(_banner(plan, time.monotonic() - began))
            ends = {asyncio.create_task(half.wait()) for half in (server, bridge)}
            await asyncio.wait({stopping, *ends}, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            await asyncio.wait(ends)
    finally:
        ended = [half.module for half in (server, bridge) if half.exit_code is not None]
        stopping.cancel()
        if stop.is_set():
            _say("\nStopping …")
        await bridge.stop()
        await server.stop()
        was_killed = server.exit_code is not None and server.exit_code < 0
        if was_killed and plan.settings.database_url is None:
            await _stop_embedded_postgres(plan)
    if stop.is_set():
        _say("Stopped.")
        return 0
    _say(f"The {' and the '.join(ended) or 'system'} ended; see above for the reason.")
    return 1


async def _stop_embedded_postgres(plan: Plan) -> None:
    """A server that was killed leaves its PostgreSQL behind; whoever uses it last stops it."""
    from server.embedded_postgres import embedded_postgres

    async with embedded_postgres(plan.settings.data_dir):
        pass


async def _until_healthy(plan: Plan, halves: tuple[Half, ...], stopping: asyncio.Task[bool]) -> bool:
    """Wait until the bridge says that everything answers. False where that won't happen any more."""
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline:
        if stopping.done() or any(half.exit_code is not None for half in halves):
            return False
        if await asyncio.to_thread(_is_healthy, plan.url):
            return all(half.exit_code is None for half in halves)
        await asyncio.sleep(0.05)
    _say(f"Nothing healthy at {plan.url} after {_START_LIMIT:.0f} s.")
    return False


def _is_healthy(url: str) -> bool:
    try:
        # Not by way of http_proxy, which leads elsewhere.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/api/chatkit/health", timeout=2) as response:
            return bool(json.load(response)["status"] == "ok")
    except (OSError, ValueError):
        return False


def _banner(plan: Plan, seconds: float) -> str:
    settings = plan.settings
    lines = {
        "page": plan.url,
        "API": f"{plan.url}/api/chatkit",
        "gRPC": plan.environment["GRPC_TARGET"],
        "database": settings.database_description,
        "model": _model(settings),
    }
    width = max(map(len, lines)) + 2
    text = "\n".join(f"  {name:<{width}}{value}" for name, value in lines.items())
    note = _DEVELOPMENT_NOTE if settings.is_development else ""
    return f"\nchatkit-grpc is up ({seconds:.1f} s)\n\n{text}\n\n{note}  Ctrl-C stops it.\n"


_DEVELOPMENT_NOTE = """  Anybody who can reach it and has no token is the first user of the database, or dev-user
  (ENVIRONMENT=development).
"""


def _model(settings: Settings) -> str:
    if settings.chatkit_server != Settings().chatkit_server:
        return f"up to {settings.chatkit_server} (CHATKIT_SERVER)"
    chosen = choose_models(settings)
    return f"{', '.join(model.label for model in chosen)}. {chosen[0].how_to_change}"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 # for a person at a terminal


def main() -> int:
    """Exit with 0 after Ctrl-C, with 1 where a half ended by itself, with 2 where a setting is wrong."""
    try:
        return asyncio.run(run(Plan.from_env()))
    except SettingsError as error:
        return refuse("chatkit-grpc", error)


if __name__ == "__main__":
    sys.exit(main())
