"""Whatever comes in at either door: an answer that says what is wrong, never a defect, never more memory.

`make fuzz` does the same with other examples each time, and more of them.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import grpc
import httpx
import psutil
import pytest
from chatkit.server import ChatKitServer
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageItem,
    ClientEffectEvent,
    FileAttachment,
    InferenceOptions,
    SyncCustomActionResponse,
    ThreadItemDoneEvent,
    ThreadMetadata,
    TranscriptionResult,
    UserMessageItem,
)
from chatkit_grpc import codec
from chatkit_grpc.errors import from_rpc_error
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from server.database import open_database
from server.store import PostgresStore
from tests.database import context_of, fresh_database, settings_of
from tests.filled import METHODS, OPERATIONS, VARIANTS, filled, message_of
from tests.page import SSE, body_of
from tests.processes import Both, both

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
bounded = settings(
    max_examples=EXAMPLES or 500,
    # Here the same each time, so that a change fails by its own fault; other examples each time by `make fuzz`.
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(120 + EXAMPLES)

DEFECTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
MOST_GROWTH = 40 * 2**20
"""How much larger a process may be in the end than after its first requests."""


class Calm(ChatKitServer[Any]):
    """Answers whatever it is asked, so that a failure is ours."""

    async def respond(self, thread: Any, input_user_message: Any, context: Any) -> AsyncIterator[Any]:
        item = AssistantMessageItem(
            id=self.store.generate_item_id("message", thread, context),
            thread_id=thread.id,
            created_at=datetime.now(),
            content=[AssistantMessageContent(text="yes")],
        )
        yield ThreadItemDoneEvent(item=item)

    async def action(self, thread: Any, action: Any, sender: Any, context: Any) -> AsyncIterator[Any]:
        yield ClientEffectEvent(name="done", data={})

    async def sync_action(self, thread: Any, action: Any, sender: Any, context: Any) -> SyncCustomActionResponse:
        return SyncCustomActionResponse()

    async def transcribe(self, audio_input: Any, context: Any) -> TranscriptionResult:
        return TranscriptionResult(text="heard")

    async def add_feedback(self, *_: Any) -> None:
        return None


class Fuzzed:
    """Both halves, what they answered, and how large they were at first."""

    def __init__(self, system: Both, store: PostgresStore) -> None:
        self.system = system
        self._store = store
        self.statuses: Counter[int] = Counter()
        self.codes: Counter[str] = Counter()
        self._processes = [psutil.Process(half.pid) for half in (system.server, system.bridge)]
        self._sizes: list[int] | None = None
        self._requests = 0

    async def post(self, body: bytes, headers: dict[str, str]) -> None:
        await self._count()
        try:
            answer = await self.system.http.post("/api/chatkit", content=body, headers=headers)
        except httpx.LocalProtocolError:
            return  # what no client can send
        self.statuses[answer.status_code] += 1
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, (answer.status_code, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]
        elif answer.headers["content-type"].startswith("text/event-stream"):
            assert "The assistant failed" not in answer.text
            assert "The bridge failed" not in answer.text
            assert "The database failed" not in answer.text

    async def call(self, method: MethodDescriptor, request: bytes, *metadata: tuple[str, str | bytes]) -> None:
        await self._count()
        try:
            await self.system.call(method, request, *metadata)
        except grpc.aio.AioRpcError as error:
            code, failure = error.code(), from_rpc_error(error)
        else:
            self.codes["OK"] += 1
            return
        self.codes[code.name] += 1
        assert code not in DEFECTS, failure
        assert failure.message

    async def is_well(self) -> None:
        """Asked in the end."""
        assert (await self.system.http.post("/api/chatkit", json=body_of("threads.list"))).status_code == 200
        print(dict(self.statuses), dict(self.codes), "grown by", [size >> 10 for size in self.growth], "KiB")
        # Not all of it was refused at the first look.
        assert not self.statuses or self.statuses[200] > 10
        assert not self.codes or self.codes["OK"] > 10
        for half in (self.system.server, self.system.bridge):
            assert half.is_running
            assert "ERROR" not in half.printed, half.printed[half.printed.index("ERROR") - 500 :][:3000]
        assert max(self.growth, default=0) < MOST_GROWTH

    async def _count(self) -> None:
        if self._requests % 50 == 0:
            await self._seed()  # one of the requests may have deleted it
        self._requests += 1
        if self._requests == 300:
            self._sizes = self.sizes

    async def _seed(self) -> None:
        """What the requests name: some of them get as far as that."""
        context = context_of("dev-user")
        thread = ThreadMetadata(id="thread_id_1", created_at=datetime.now())
        await self._store.save_thread(thread, context)
        for name in ("item_id_1", "item_ids_1", "id_1"):
            message = UserMessageItem(
                id=name,
                thread_id=thread.id,
                created_at=datetime.now(),
                content=[],
                attachments=[],
                inference_options=InferenceOptions(),
            )
            await self._store.add_thread_item(thread.id, message, context)
        for name in ("attachments_1", "attachment_id_1"):
            await self._store.save_attachment(FileAttachment(id=name, name="a", mime_type="text/plain"), context)

    @property
    def sizes(self) -> list[int]:
        return [process.memory_info().rss for process in self._processes]

    @property
    def growth(self) -> list[int]:
        return [] if self._sizes is None else [now - then for now, then in zip(self.sizes, self._sizes, strict=True)]


@pytest.fixture(scope="module")
async def fuzzed(postgres_url: str, migrated_template: str) -> AsyncIterator[Fuzzed]:
    async with (
        fresh_database(postgres_url, migrated_template) as url,
        both(url, CHATKIT_SERVER="tests.test_fuzz:Calm", RUN_GRACE_SECONDS="0") as system,
        open_database(settings_of(url)) as database,
    ):
        fuzzed = Fuzzed(system, PostgresStore(database))
        yield fuzzed
        await fuzzed.is_well()


texts = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    ["", "thr_1", "\x00", "\ud800", "a" * 5000, "../..", "' or 1=1 --", "%00", "\u202e", "msg_1"]
)
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**53 + 1, 2**63, -(2**63), 1e308, 1e400])
request_ids = st.integers(0, 2**60).map(lambda number: f"request_{number}")
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4),
    max_leaves=12,
)
headers = st.dictionaries(
    st.sampled_from(
        [
            *("accept", "accept-language", "authorization", "content-type", "cookie", "idempotency-key", "origin"),
            *("last-event-id", "traceparent", "user-agent", "x-request-id", "x-user-id", "chatkit-frame-instance-id"),
        ]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
    | st.sampled_from(
        ["text/event-stream", "application/json", "application/x-protobuf", "Bearer x", "run_1:5", "*/*"]
    ),
    max_size=4,
)


def valid_body(operation: int, variant: int, request_id: str) -> Any:
    """What a page might send, with something in every member."""
    field = OPERATIONS[operation % len(OPERATIONS)]
    assert field.message_type is not None
    request: Any = ChatKitRequest(metadata='{"a": 1}')
    getattr(request, field.name).CopyFrom(
        filled(message_of(field.message_type), "text", {"request_id": request_id}, variant)
    )
    return json.loads(codec.encode(request))


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A request with something in it replaced, left out, or added."""
    body = valid_body(draw(st.integers(0, 100)), draw(st.integers(0, VARIANTS)), draw(request_ids))
    for _ in range(draw(st.integers(0, 3))):
        places = list(containers_of(body))
        place = draw(st.sampled_from(places))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys or draw(st.booleans()):
            if isinstance(place, dict):
                place[draw(texts)] = draw(values)
            else:
                place.append(draw(values))
        elif draw(st.booleans()):
            place[draw(st.sampled_from(keys))] = draw(values)
        else:
            del place[draw(st.sampled_from(keys))]
    return body


def containers_of(value: Any) -> Any:
    if isinstance(value, dict):
        yield value
        for member in value.values():
            yield from containers_of(member)
    elif isinstance(value, list):
        yield value
        for member in value:
            yield from containers_of(member)


def written(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


JSON = {"content-type": "application/json"}
PROTOBUF = {"content-type": "application/x-protobuf"}


@bounded
@given(body=mutated(), wants_stream=st.booleans())
async def test_requests_with_something_wrong(fuzzed: Fuzzed, body: Any, wants_stream: bool) -> None:
    await fuzzed.post(written(body), {**JSON, **(SSE if wants_stream else {})})


@bounded
@given(body=values.map(written) | st.binary(max_size=200), sent=headers)
async def test_anything_at_all(fuzzed: Fuzzed, body: bytes, sent: dict[str, str]) -> None:
    await fuzzed.post(body, {**JSON, **sent})


@bounded
@given(body=mutated(), sent=headers)
async def test_requests_with_odd_headers(fuzzed: Fuzzed, body: Any, sent: dict[str, str]) -> None:
    await fuzzed.post(written(body), {**JSON, **sent})


@st.composite
def broken_bytes(draw: st.DrawFn, serialized: bytes) -> bytes:
    """Bytes of a message with some changed, cut off, repeated, or put in."""
    data = bytearray(serialized)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 4]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case _:
                data += data[at:]
    return bytes(data)


@st.composite
def calls(draw: st.DrawFn) -> tuple[MethodDescriptor, bytes]:
    method = draw(st.sampled_from(METHODS))
    ids = {"request_id": draw(request_ids)}
    request = filled(message_of(method.input_type), "text", ids, draw(st.integers(0, VARIANTS)))
    if draw(st.integers(0, 5)) == 0:
        return method, draw(st.binary(max_size=100))
    return method, draw(broken_bytes(request.SerializeToString()))


metadata = st.lists(
    st.tuples(
        st.sampled_from(["x-user-id", "authorization", "last-event-id", "cookie", "chatkit-host", "accept-language"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    )
    | st.tuples(st.just("chatkit-request-metadata-bin"), st.binary(max_size=40)),
    max_size=3,
)


@bounded
@given(call=calls(), sent=metadata)
async def test_bytes_by_grpc(
    fuzzed: Fuzzed, call: tuple[MethodDescriptor, bytes], sent: list[tuple[str, str | bytes]]
) -> None:
    await fuzzed.call(*call, *sent)


@st.composite
def protobuf_bodies(draw: st.DrawFn) -> bytes:
    field = draw(st.sampled_from(OPERATIONS))
    assert field.message_type is not None
    request: Any = ChatKitRequest()
    variant = draw(st.integers(0, VARIANTS))
    getattr(request, field.name).CopyFrom(filled(message_of(field.message_type), "text", {}, variant))
    return draw(broken_bytes(request.SerializeToString()))


@bounded
@given(body=protobuf_bodies())
async def test_protobuf_by_http(fuzzed: Fuzzed, body: bytes) -> None:
    await fuzzed.post(body, PROTOBUF)


@bounded
@given(data=st.binary(max_size=300) | st.text(max_size=100).map(lambda text: f"POST {text} HTTP/1.1\r\n\r\n".encode()))
async def test_anything_that_is_no_http(fuzzed: Fuzzed, data: bytes) -> None:
    host, port = str(fuzzed.system.http.base_url.host), fuzzed.system.http.base_url.port
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(5):
            answer = await reader.read(1000)
    except ConnectionError:
        answer = b""
    finally:
        writer.close()
    assert not answer or answer.split(b" ", 2)[1][:1] in {b"2", b"4"}, answer
