"""A model server over a real socket that speaks OpenAI's two streaming interfaces and does as its script says."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, Literal, Self

_ids = count(1)
PROMPT_TOKENS = 41
"""What a model's server says that it was told, in tokens; it says one token itself, however long that is."""


@dataclass(frozen=True, slots=True)
class Say:
    """An answer of numbered tokens "t0 t1 …", or of a text.

    thinking: what it thinks aloud before, where the interface is Chat Completions.
    break_after: the socket is cut after so many tokens, in the middle of the stream.
    hang_after: nothing more comes after so many tokens.
    """

    tokens: int = 5
    text: str | None = None
    delay: float = 0.0
    thinking: str = ""
    break_after: int | None = None
    hang_after: int | None = None

    def pieces(self) -> list[str]:
        if self.text is not None:
            return [word + " " for word in self.text.split(" ")]
        return [f"t{number} " for number in range(self.tokens)]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call, after a message where `saying` has one, and with others at the same time.

    thinking: as above. call_id: one that isn't new each time, as some servers give.
    """

    name: str
    arguments: Mapping[str, Any]
    saying: str = ""
    thinking: str = ""
    also: Sequence[Call] = ()
    call_id: str = ""

    def all(self) -> list[Call]:
        return [self, *self.also]


@dataclass(frozen=True, slots=True)
class Fail:
    """A status instead of an answer, each time that the client tries again too; and in how many seconds that may be."""

    status: int
    retry_after: float = 0.001


@dataclass(frozen=True, slots=True)
class Refuse:
    """The model declines, in its own words; it may think aloud before, where the interface is Chat Completions."""

    words: str = "secret words of a refusal"
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class Misbehave:
    """How not to answer.

    empty: a stream without events. hang: no answer at all. blank: an answer that says nothing. filter: the provider
    filters it. cut: it is too long. fail: the provider fails after it has begun, before it says anything. junk: what
    nobody can read.
    """

    how: Literal["empty", "hang", "blank", "filter", "cut", "fail", "junk"]


Step = Say | Call | Fail | Refuse | Misbehave


@dataclass
class FakeOpenAI:
    """The server; `script` is what it does, a step for each request, the last one for all further requests.

    requests: the bodies it was sent.
    headers: their headers, names in lower case.
    open_streams: answers under way whose client is still there.
    tokens_sent: the tokens written so far, to clients that are there.
    """

    script: Sequence[Step] = (Say(),)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    open_streams: int = 0
    tokens_sent: int = 0
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
            # One request per connection: then its end is the end of the stream.
            path, wants_usage = await self._read_request(reader)
            step = self._steps.popleft() if len(self._steps) > 1 else self._steps[0]
            await self._until_gone(reader, self._answer(writer, step, path, wants_usage=wants_usage))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # The client has gone, or the test is over: an ordinary end of a connection.
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _read_request(self, reader: asyncio.StreamReader) -> tuple[str, bool]:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.headers.append(headers)
        request = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests.append(request)
        self.paths.append(first.split(" ")[1])
        return self.paths[-1], bool((request.get("stream_options") or {}).get("include_usage"))

    async def _until_gone(self, reader: asyncio.StreamReader, answer: Any) -> None:
        self.open_streams += 1
        answering = asyncio.ensure_future(answer)
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.open_streams -= 1
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, writer: asyncio.StreamWriter, step: Step, path: str, *, wants_usage: bool) -> None:
        if isinstance(step, Fail):
            await self._send_failure(writer, step)
            return
        if step == Misbehave("hang"):
            await asyncio.Event().wait()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        is_chat = path.endswith("/chat/completions")
        events = _chat_completions(step, wants_usage=wants_usage) if is_chat else _responses(step)
        done = 0
        for event, is_token in events:
            if is_token and isinstance(step, Say):
                if step.break_after == done:
                    writer.transport.abort()
                    return
                if step.hang_after == done:
                    await asyncio.Event().wait()
                await asyncio.sleep(step.delay)
                done += 1
            await _send(writer, event)
            self.tokens_sent += is_token
        await _send(writer, "")

    async def _send_failure(self, writer: asyncio.StreamWriter, step: Fail) -> None:
        body = json.dumps({"error": {"message": "secret words of the provider", "type": "x", "code": None}}).encode()
        writer.write(
            f"HTTP/1.1 {step.status} No\r\ncontent-type: application/json\r\n"
            f"retry-after-ms: {step.retry_after * 1000}\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body)
        await writer.drain()


async def _send(writer: asyncio.StreamWriter, text: str) -> None:
    """Send a chunk; an empty one ends the body."""
    data = text.encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


_PROVIDER_FAILS = 'data: {"error": {"message": "secret words of the provider", "code": "server_error"}}\n\n'


def _chat_completions(  # noqa: C901 # a case for each kind of step
    step: Step, *, wants_usage: bool
) -> Iterator[tuple[str, bool]]:
    """The chunks of Chat Completions, each with whether it carries a token."""
    identity = {"id": f"chatcmpl-{next(_ids)}", "object": "chat.completion.chunk", "created": 1, "model": "fake"}

    def chunk(delta: Mapping[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**identity, 'choices': [choice]})}\n\n"

    if isinstance(step, Say):
        yield chunk({"role": "assistant", "content": ""}), False
        if step.thinking:
            yield chunk({"reasoning_content": step.thinking}), False
        for piece in step.pieces():
            yield chunk({"content": piece}), True
        yield chunk({}, "stop"), False
    elif isinstance(step, Refuse):
        if step.thinking:
            yield chunk({"reasoning_content": step.thinking}), False
        yield chunk({"role": "assistant", "refusal": step.words}), False
        yield chunk({}, "stop"), False
    elif isinstance(step, Misbehave) and step.how in {"fail", "junk"}:
        yield chunk({"role": "assistant", "content": ""}), False
        yield _PROVIDER_FAILS if step.how == "fail" else "data: {junk\n\n", False
        return
    elif isinstance(step, Misbehave) and step.how != "empty":
        yield chunk({"role": "assistant", "content": ""}), False
        yield chunk({}, {"filter": "content_filter", "cut": "length"}.get(step.how, "stop")), False
    elif isinstance(step, Call):
        if step.thinking:
            yield chunk({"reasoning_content": step.thinking}), False
        if step.saying:
            yield chunk({"role": "assistant", "content": step.saying}), False
        for index, called in enumerate(step.all()):
            function = {"name": called.name, "arguments": json.dumps(called.arguments)}
            call = {
                "index": index,
                "id": called.call_id or f"call_{next(_ids)}",
                "type": "function",
                "function": function,
            }
            yield chunk({"role": "assistant", "tool_calls": [call]}), False
        yield chunk({}, "tool_calls"), False
    if wants_usage:
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 1, "total_tokens": PROMPT_TOKENS + 1}
        yield f"data: {json.dumps({**identity, 'choices': [], 'usage': usage})}\n\n", False
    yield "data: [DONE]\n\n", False


def _responses(step: Step) -> Iterator[tuple[str, bool]]:
    """The events of the Responses API, each with whether it carries a token."""
    if isinstance(step, Misbehave) and step.how == "empty":
        return
    number = count()
    response: dict[str, Any] = {
        "id": f"resp_{next(_ids)}",
        "object": "response",
        "created_at": 1,
        "model": "fake",
        "output": [],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "status": "in_progress",
    }

    def event(name: str, **members: Any) -> str:
        return f"event: {name}\ndata: {json.dumps({'type': name, 'sequence_number': next(number), **members})}\n\n"

    yield event("response.created", response=response), False
    output: list[dict[str, Any]] = []
    if isinstance(step, Refuse):
        output.append(_message_of({"type": "refusal", "refusal": step.words}))
        added = {**output[0], "content": [], "status": "in_progress"}
        yield event("response.output_item.added", output_index=0, item=added), False
        yield event("response.output_item.done", output_index=0, item=output[0]), False
    if isinstance(step, Misbehave):
        if step.how == "junk":
            yield "data: {junk\n\n", False
            return
        if step.how != "blank":
            yield _end_of(step.how, response, event), False
            return
    elif isinstance(step, Say) or (isinstance(step, Call) and step.saying):
        message = _message(step)
        at: dict[str, Any] = {"item_id": message["id"], "output_index": 0, "content_index": 0}
        text = message["content"][0]["text"]
        added = {**message, "content": [], "status": "in_progress"}
        yield event("response.output_item.added", output_index=0, item=added), False
        empty = {"type": "output_text", "text": "", "annotations": []}
        yield event("response.content_part.added", part=empty, **at), False
        for piece in step.pieces() if isinstance(step, Say) else [text]:
            yield event("response.output_text.delta", delta=piece, logprobs=[], **at), True
        yield event("response.output_text.done", text=text, logprobs=[], **at), False
        yield event("response.content_part.done", part=message["content"][0], **at), False
        yield event("response.output_item.done", output_index=0, item=message), False
        output.append(message)
    for called in step.all() if isinstance(step, Call) else ():
        call = {
            "id": f"fc_{next(_ids)}",
            "call_id": called.call_id or f"call_{next(_ids)}",
            "type": "function_call",
            "name": called.name,
            "arguments": json.dumps(called.arguments),
            "status": "completed",
        }
        index = len(output)
        started = {**call, "arguments": "", "status": "in_progress"}
        yield event("response.output_item.added", output_index=index, item=started), False
        yield event("response.output_item.done", output_index=index, item=call), False
        output.append(call)
    usage = {
        "input_tokens": PROMPT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": PROMPT_TOKENS + 1,
    }
    done = {**response, "status": "completed", "output": output, "usage": usage}
    yield event("response.completed", response=done), False


def _end_of(how: str, response: Mapping[str, Any], event: Callable[..., str]) -> str:
    if how == "fail":
        error = {"code": "server_error", "message": "secret words of the provider"}
        return event("response.failed", response={**response, "status": "failed", "error": error})
    details = {"reason": "content_filter" if how == "filter" else "max_output_tokens"}
    return event("response.incomplete", response={**response, "status": "incomplete", "incomplete_details": details})


def _message(step: Say | Call) -> dict[str, Any]:
    text = "".join(step.pieces()) if isinstance(step, Say) else step.saying
    return _message_of({"type": "output_text", "text": text, "annotations": []})


def _message_of(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{next(_ids)}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
