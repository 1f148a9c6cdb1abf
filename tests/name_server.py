"""A name server for the tests: one name, with as many addresses as it has servers."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

_A, _IN = 1, 1


class _Answering(asyncio.DatagramProtocol):
    """Answers any question for an address of whatever name; what else is asked has no answer."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = [ipaddress.ip_address(address).packed for address in addresses]
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        (kind,) = struct.unpack("!H", data[end - 4 : end - 2])
        found = self._addresses if kind == _A else []
        head = data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
        # Each record: the question's name by reference, its type and class, 1 s to live, and the address.
        records = b"".join(struct.pack("!HHHIH", 0xC00C, _A, _IN, 1, len(packed)) + packed for packed in found)
        assert self._transport is not None
        self._transport.sendto(head + data[12:end] + records, address)


@asynccontextmanager
async def name_server(*addresses: str) -> AsyncIterator[str]:
    """Answer with these addresses. Yields the server's own address, as host:port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Answering(addresses), ("127.0.0.1", 0))
    try:
        host, port = transport.get_extra_info("sockname")
        yield f"{host}:{port}"
    finally:
        transport.close()
