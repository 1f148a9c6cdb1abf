"""A gRPC client that watches a run, on the server of its choice and past the bridge."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
from chatkit_grpc.errors import from_rpc_error
from chatkit_grpc.text_delta import encode_event
from chatkit_grpc.v1.run_pb2 import EventBatch, RunState

from tests.faults.witness import Witness


class Call:
    """A streaming call that is being read. `witness` is what it has seen."""

    def __init__(self, witness: Witness, call: Any) -> None:
        self.witness = witness
        self._call = call
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._reading = asyncio.create_task(self._read(), name=witness.name)

    def freeze(self) -> None:
        """Read nothing more."""
        self._may_read.clear()

    def thaw(self) -> None:
        """Read again."""
        self._may_read.set()

    async def close(self) -> None:
        """Leave."""
        self.witness.ended("left")
        self._call.cancel()
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def _read(self) -> None:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self._take(response.batch)
                await self._may_read.wait()
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            what = f"{error.code().name} {failure.code} {failure.message}"
            self.witness.ended("broken" if self.witness.run_id else "refused", what)
            return
        self.witness.ended("clean")

    def _take(self, batch: EventBatch) -> None:
        for number, event in enumerate(batch.events, batch.first_sequence):
            self.witness.saw(json.loads(encode_event(event)), batch.run_id, number)
        if batch.state:
            self.witness.state = RunState.Name(batch.state)
