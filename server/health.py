"""Health, as grpc.health.v1 has it: SERVING only while the database answers; parts by names of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import grpc
from chatkit_grpc.errors import DatabaseError
from chatkit_grpc.services import DICTATION_KEY, OPENAI_KEY
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.database import Database
from server.worker import Worker

_INTERVAL = 2.0

log = logging.getLogger(__name__)


class HealthReporter(Worker):
    """Asks the database every two seconds, and tells whoever asks or watches.

    parts: names of parts of the assistant, and whether each is well. The server serves without them.
    """

    def __init__(
        self,
        database: Database,
        *,
        has_openai_key: bool,
        takes_dictation: bool,
        parts: Callable[[], Mapping[str, bool]] = dict,
    ) -> None:
        super().__init__("health", self._report_for_ever)
        self._parts = parts
        self._database = database
        self._facts = {OPENAI_KEY: has_openai_key, DICTATION_KEY: takes_dictation}
        self._servicer = _Servicer()
        self._names: tuple[str, ...] = ()
        self._was_serving: bool | None = None

    def add_to(self, server: grpc.aio.Server, services: Iterable[str]) -> None:
        """Offer grpc.health.v1 for the server as a whole ("") and for each service."""
        self._names = ("", *services)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def __aenter__(self) -> Self:
        for name, is_so in self._facts.items():
            await self._servicer.set(name, _status(is_serving=is_so))
        await self._report()
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, tb)
        await self._servicer.enter_graceful_shutdown()

    async def _report_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            await self._report()

    async def _report(self) -> None:
        try:
            await self._database.ping()
            is_serving = True
        except DatabaseError:
            is_serving = False
        if is_serving is not self._was_serving:
            log.info("the database %s", "answers" if is_serving else "does not answer")
            self._was_serving = is_serving
        for name in self._names:
            await self._servicer.set(name, _status(is_serving=is_serving))
        for name, is_well in self._parts().items():
            await self._servicer.set(name, _status(is_serving=is_well))


class _Servicer(health.aio.HealthServicer):
    """The library's, which has no List."""

    def __init__(self) -> None:
        super().__init__()
        self._listed: dict[str, Any] = {}

    async def set(self, service: str, status: Any) -> None:
        """Set the status of a service."""
        self._listed[service] = status
        await super().set(service, status)

    async def enter_graceful_shutdown(self) -> None:
        """Serve nothing from now on."""
        self._listed = dict.fromkeys(self._listed, health_pb2.HealthCheckResponse.NOT_SERVING)
        await super().enter_graceful_shutdown()

    async def List(self, request: Any, context: object) -> Any:  # noqa: N802 # gRPC's name
        """The status of every service."""
        statuses = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._listed.items()}
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined] # the stubs are older


def _status(*, is_serving: bool) -> int:
    response = health_pb2.HealthCheckResponse
    return int(response.SERVING if is_serving else response.NOT_SERVING)
