"""A transcription server over a real socket that speaks OpenAI's /audio/transcriptions and does as its script says."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from types import TracebackType
from typing import Any, Literal, Self

SECRET_WORDS = "secret words of the provider"  # noqa: S105 # no password


@dataclass(frozen=True, slots=True)
class Hear:
    """A text; tokens is what it took, where the server says so. seconds: how long it takes."""

    text: str
    tokens: int | None = None
    seconds: float = 0.0

    def body(self) -> bytes:
        usage = {} if self.tokens is None else {"usage": {"type": "tokens", "total_tokens": self.tokens}}
        return json.dumps({"text": self.text, **usage}).encode()


@dataclass(frozen=True, slots=True)
class Refuse:
    """A status in place of an answer."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Junk:
    """A body with a status of 200."""

    body: bytes
    content_type: str = "application/json"


Step = Hear | Refuse | Junk | Literal["hang", "cut"]


@dataclass
class Heard:
    """What the server was sent. fields: the form's, the file left out."""

    path: str
    headers: Mapping[str, str]
    fields: Mapping[str, str]
    file_name: str
    mime_type: str
    audio: bytes


@dataclass
class FakeTranscriber:
    """The server; `script` is what it does, a step for each request, the last one for all further ones."""

    script: Sequence[Step] = (Hear("Hello there."),)
    heard: list[Heard] = field(default_factory=list)
    base_url: str = ""

    async def __aenter__(self) -> Self:
        self._steps = deque(self.script)
        self._connections: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1/"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def then(self, *steps: Step) -> None:
        """Replace what is left of the script."""
        self._steps = deque(steps)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            self.heard.append(await _read(reader))
            await self._answer(writer, self._steps.popleft() if len(self._steps) > 1 else self._steps[0])
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, step: Step) -> None:
        match step:
            case Hear():
                await asyncio.sleep(step.seconds)
                await _send(writer, 200, step.body(), {})
            case Refuse():
                body = json.dumps({"error": {"message": SECRET_WORDS, "type": "x", "code": None}}).encode()
                await _send(writer, step.status, body, step.headers)
            case Junk():
                await _send(writer, 200, step.body, {"content-type": step.content_type})
            case "hang":
                await asyncio.Event().wait()
            case "cut":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{")
                await writer.drain()
                writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    lines = {"content-type": "application/json", **headers, "content-length": str(len(body)), "connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"HTTP/1.1 {status} No\r\n{head}\r\n".encode() + body)
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> Heard:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    form = await reader.readexactly(int(headers["content-length"]))
    head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
    parts: dict[str, Any] = {
        str(part.get_param("name", header="content-disposition")): part
        for part in BytesParser(policy=HTTP).parsebytes(head + form).iter_parts()
    }
    file = parts.pop("file")
    return Heard(
        path=first.split(" ")[1],
        headers=headers,
        fields={name: part.get_payload(decode=True).decode() for name, part in parts.items()},
        file_name=file.get_filename(),
        mime_type=file.get_content_type(),
        audio=file.get_payload(decode=True),
    )
