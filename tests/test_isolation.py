"""What belongs to somebody else can't be told from what doesn't exist: the same words by the same way, on every RPC.

The RPCs and the operations are read from the descriptors, and so are the fields that name something. A field that looks
like an id and isn't in these tables fails a test: say there what it names.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import grpc
import pytest
from chatkit_grpc.errors import from_rpc_error
from chatkit_grpc.services import SERVICES
from chatkit_grpc.v1 import chatkit_request_pb2, item_pb2, run_service_pb2, thread_service_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from server.auth.interceptor import AuthInterceptor
from server.cursors import to_cursor
from server.database import Database
from server.runs.store import RunKey
from tests.database import fresh_database
from tests.issuer import hs256
from tests.runs_fixtures import until
from tests.scripted import ScriptedServer
from tests.system import PRODUCTION, System, open_system

METHODS: list[MethodDescriptor] = [method for service in SERVICES.values() for method in service.methods]
OPERATIONS = {
    field.message_type.full_name: field.name
    for field in chatkit_request_pb2.ChatKitRequest.DESCRIPTOR.oneofs_by_name["operation"].fields
    if field.message_type
}

KINDS = {
    "thread_id": "thread",
    "item_id": "item",
    "item_ids": "item",
    "attachment_id": "attachment",
    "input.attachments": "attachment",
    "run_id": "run",
    "request_id": "request",
    "item.id": "item",
    "item.attachments": "attachment",
    "ListThreads.after": "thread",
    "ListItems.after": "item",
    "WatchThread.after": "cursor",
    "SearchThreads.after": "search cursor",
    "ListFeedback.after": "feedback cursor",
    "ListAllFeedback.after": "nothing for users",
}
"""What a field names, by its path, with the RPC before it where it depends on that."""
NAMES_NOTHING_OF_OURS = {"input.inference_options.tool_choice.id", "input.content.input_tag.id"}
LOOKS_LIKE_AN_ID = re.compile(r"(^|_|\.)(id|ids|after|attachments)$")

SAMPLES: dict[str, Any] = {
    "result": "{}",
    "action.type": "note",
    "title": "Title",
    "kind": thread_service_pb2.FEEDBACK_KIND_POSITIVE,
    "name": "a.txt",
    "mime_type": "text/plain",
    "size": 3,
    "audio": b"x",
    "query": "1000000",  # what alice alone has said
}
"""What must be there and names nothing."""

Named = Mapping[str, str]
"""Ids, by the paths of the fields that carry them."""

LATER = datetime(2100, 1, 1, tzinfo=UTC)
ID = re.compile(r"\b[a-z]{2,6}_[0-9a-f]{16,}\b")
TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|\+00:00)")


@dataclass(frozen=True, slots=True)
class Probe:
    """Fields of an RPC that name something, by what they name; all of them are somebody else's at once."""

    method: MethodDescriptor
    kinds: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.method.name}-{'+'.join(self.kinds)}"


def fields_of(descriptor: Descriptor, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    for field in descriptor.fields:
        path = prefix + field.name
        yield path, field
        # An item is what the server itself makes of it, but for the fields that are named above.
        if field.message_type and field.message_type.file.package == descriptor.file.package:
            if field.message_type.full_name != item_pb2.ThreadItem.DESCRIPTOR.full_name:
                yield from fields_of(field.message_type, path + ".")
            else:
                yield from ((f"{path}.{name}", field) for name in ("id", "attachments"))


def probes() -> Iterator[Probe]:
    for method in METHODS:
        paths = [path for path, _ in fields_of(method.input_type)]
        kinds = {path: KINDS.get(f"{method.name}.{path}") or KINDS.get(path) for path in paths}
        known = {path: kind for path, kind in kinds.items() if kind}
        yield from (Probe(method, {path: kind}) for path, kind in known.items())
        # A thread and what is on it may be somebody else's together.
        both = {path: kind for path, kind in known.items() if kind in {"thread", "item"}}
        if len(both) > 1:
            yield Probe(method, both)


PROBES = list(probes())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_it_is_said_of_each_id_what_it_names(method: MethodDescriptor) -> None:
    paths = [path for path, field in fields_of(method.input_type) if field.type == FieldDescriptor.TYPE_STRING]
    known = {path for probe in PROBES if probe.method is method for path in probe.kinds} | NAMES_NOTHING_OF_OURS
    assert [path for path in paths if LOOKS_LIKE_AN_ID.search(path) and path not in known] == []


@dataclass(slots=True)
class Belongings:
    """What a user has: a thread with items, an attachment, a run that has ended, its request_id, one that goes on."""

    thread: str
    item: str
    attachment: str
    run: str
    active_thread: str
    active_run: str
    request: str

    def of(self, kind: str) -> list[str]:
        return {
            "thread": [self.thread, self.active_thread],
            "item": [self.item],
            "attachment": [self.attachment],
            "run": [self.run, self.active_run],
            "request": [self.request],
            "cursor": [f"1.1.{self.run}", f"1.1.{self.active_run}"],
            "search cursor": [to_cursor(LATER, True, LATER, self.thread)],  # a value
            "feedback cursor": [to_cursor(LATER, self.thread, self.item)],
            "nothing for users": [to_cursor(LATER, "alice", self.thread, self.item)],
        }[kind]


def made_up(existing: str) -> str:
    """One of the same form that nobody has."""
    if existing.startswith("W"):  # a cursor: JSON in base64
        inside = base64.urlsafe_b64decode(existing + "=" * (-len(existing) % 4)).decode()
        return base64.urlsafe_b64encode(made_up(inside).encode()).decode().rstrip("=")
    found = re.sub(r"(?<=_)[0-9a-f]{16,}", lambda found: found[0][::-1], existing)
    assert found != existing
    return found


def metadata_of(user: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {hs256(sub=user)}"),)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a caller sees, and by what statements it came about."""

    said: str
    statements: Counter[str]


class Caller:
    """Calls RPCs for a user by their descriptors."""

    def __init__(self, system: System, user: str, made: Counter[str]) -> None:
        self._system = system
        self._user = user
        self._made = made

    async def call(self, method: MethodDescriptor, request: Message, *, seconds: float = 20) -> list[Message]:
        """All responses; of a stream without an end those that came within a moment. Raises AioRpcError."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        kind = self._system.channel.unary_stream if method.server_streaming else self._system.channel.unary_unary
        make_call: Any = kind(path)
        call = make_call(request.SerializeToString(), metadata=metadata_of(self._user), timeout=seconds)
        response_type = GetMessageClass(method.output_type)
        if not method.server_streaming:
            return [response_type.FromString(await call)]
        responses: list[Message] = []
        try:
            async with asyncio.timeout(1 if method.name == "WatchThread" else seconds):
                async for response in call:
                    responses.append(response_type.FromString(response))  # noqa: PERF401 # what came in time counts
        except TimeoutError:
            call.cancel()
        return responses

    async def try_out(self, method: MethodDescriptor, request: Message, named: Named) -> Outcome:
        self._made.clear()
        try:
            responses = await self.call(method, request)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            said = f"{error.code()} {error.details()} {failure.code} {failure.metadata} {failure.violations}"
        else:
            await self._has_ended(responses[-1:])
            said = "\n".join(MessageToJson(part) for response in responses for part in parts_of(response))
        return Outcome(neutral(said, named), Counter(self._made))

    async def _has_ended(self, responses: list[Any]) -> None:
        """Wait for a run that was started beside: what it asks of the database counts too."""
        for response in responses:
            if run_id := getattr(response, "run_id", ""):
                await until(lambda: self._system.server.runs.get(RunKey(self._user, run_id)) is None)

    async def post(self, request: Message, named: Named, *, accept: str) -> Outcome:
        """The same through the bridge, which is asked for a stream or not."""
        self._made.clear()
        operation = {OPERATIONS[request.DESCRIPTOR.full_name]: request}
        headers = {**dict(metadata_of(self._user)), "content-type": "application/x-protobuf", "accept": accept}
        body = chatkit_request_pb2.ChatKitRequest(**operation).SerializeToString()  # type: ignore[arg-type]  # its case
        response = await self._system.http.post("/api/chatkit", content=body, headers=headers)
        return Outcome(f"{response.status_code} {neutral(response.text, named)}", Counter(self._made))


def parts_of(response: Any) -> list[Message]:
    """What it says. How much of that comes in one batch is a matter of time."""
    if "batch" not in response.DESCRIPTOR.fields_by_name:
        return [response]
    events = list(response.batch.events)
    for name in ("batch", "cursor"):
        if name in response.DESCRIPTOR.fields_by_name:
            response.ClearField(name)
    return events + ([response] if response.ListFields() else [])


def neutral(said: str, named: Named) -> str:
    """Without what is different each time. Ids last, since what was named may be one."""
    for path, value in named.items():
        for part in (value, value.rpartition(".")[2]):
            said = said.replace(part, f"NAMED AS {path}")
    lines = [line for line in said.splitlines() if not line.startswith(":")]  # a heartbeat of the bridge
    return TIME.sub("TIME", ID.sub("ID", "\n".join(lines)))


@pytest.fixture(scope="module")
def made() -> Counter[str]:
    return Counter()


@pytest.fixture(scope="module")
async def system(postgres_url: str, migrated_template: str, made: Counter[str]) -> AsyncIterator[System]:
    """It counts in `made` what calls of users ask of the database, and nothing that goes on beside them."""
    fetch, intercept = Database._fetch, AuthInterceptor.intercept_service
    is_for_a_caller = ContextVar("is_for_a_caller", default=False)

    async def counted(self: Database, statement: str, *others: Any) -> Any:
        if is_for_a_caller.get():
            made[statement] += 1
        return await fetch(self, statement, *others)

    async def marked(self: AuthInterceptor, *arguments: Any) -> Any:
        is_for_a_caller.set(True)  # also for all tasks that are begun while the call is served
        return await intercept(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "_fetch", counted)
        patch.setattr(AuthInterceptor, "intercept_service", marked)
        async with (
            fresh_database(postgres_url, migrated_template) as database_url,
            open_system(database_url, ScriptedServer, server=PRODUCTION) as system,
        ):
            yield system


@pytest.fixture(scope="module")
async def of_alice(system: System) -> AsyncIterator[Belongings]:
    belongings = await belongings_of(system, "alice", goes_on=True)
    yield belongings
    caller = Caller(system, "alice", Counter())
    await caller.call(method("CancelRun"), run_service_pb2.CancelRunRequest(run_id=belongings.active_run))


def method(name: str) -> MethodDescriptor:
    return next(method for method in METHODS if method.name == name)


async def belongings_of(system: System, user: str, *, goes_on: bool = False) -> Belongings:
    caller = Caller(system, user, Counter())
    request_id = f"request_{uuid4().hex}"
    said = await create_thread(caller, "tokens 3", request_id)
    (attachment,) = await caller.call(
        method("CreateAttachment"),
        message("CreateAttachment", {"name": uuid4().hex, "size": 1, "mime_type": "text/plain"}),
    )
    found = Belongings(
        thread=thread_of(said),
        item=item_of(said),
        attachment=attachment.attachment.file.id,  # type: ignore[attr-defined]  # CreateAttachmentResponse
        run=said[0].batch.run_id,
        active_thread="",
        active_run="",
        request=request_id,
    )
    if goes_on:
        make_call: Any = system.channel.unary_stream("/chatkit_grpc.v1.ChatService/CreateThread")
        request = message("CreateThread", {"input.content.input_text.text": "tokens 1000000 0.05"})
        call = make_call(request.SerializeToString(), metadata=metadata_of(user))
        begun: Any = GetMessageClass(method("CreateThread").output_type).FromString(await call.read())
        found.active_run, found.active_thread = begun.batch.run_id, thread_of([begun])
        # Whoever reads what is being made counts as a watcher; this one goes on watching.
        asyncio.get_running_loop().create_task(drain(call))
    return found


async def drain(call: Any) -> None:
    async for _ in call:
        pass


async def create_thread(caller: Caller, text: str, request_id: str) -> list[Any]:
    fields = {"input.content.input_text.text": text, "request_id": request_id}
    return await caller.call(method("CreateThread"), message("CreateThread", fields))


def thread_of(responses: list[Any]) -> str:
    events = [event for response in responses for event in response.batch.events]
    found: str = next(event.thread_created.thread.id for event in events if event.HasField("thread_created"))
    return found


def item_of(responses: list[Any]) -> str:
    events = [event for response in responses for event in response.batch.events]
    found: str = next(
        event.thread_item_done.item.user_message.id
        for event in events
        if event.HasField("thread_item_done") and event.thread_item_done.item.HasField("user_message")
    )
    return found


def message(name: str, fields: dict[str, Any]) -> Message:
    made: Message = GetMessageClass(method(name).input_type)()
    for path, value in fields.items():
        set_field(made, path, value)
    return made


def set_field(made: Message, path: str, value: Any) -> None:
    name, _, rest = path.partition(".")
    field = made.DESCRIPTOR.fields_by_name[name]
    if rest:
        inner = getattr(made, name)
        set_field(inner.add() if field.is_repeated else inner, rest, value)
    elif field.is_repeated:
        getattr(made, name).append(value)
    else:
        setattr(made, name, value)


NEEDS_MORE: dict[str, dict[str, Any]] = {
    "CreateThread": {"input.content.input_text.text": "tokens 2"},
    "AddUserMessage": {"input.content.input_text.text": "tokens 2"},
    "AddStructuredInput": {"input.status": item_pb2.STRUCTURED_INPUT_STATUS_SKIPPED},
    "AppendItem": {"item.user_message.content.input_text.text": "tokens 2", "start_run": True},
}
ITEM_PATHS = {"item.id": "item.user_message.id", "item.attachments": "item.user_message.attachments.file.id"}


def request_of(method: MethodDescriptor, named: Named, own: Belongings) -> Message:
    """What the RPC needs, of the caller's own, and what is named."""
    required: dict[str, Any] = {**NEEDS_MORE.get(method.name, {})}
    for field in method.input_type.fields:
        is_required = any(option.name == "required" and value for option, value in field.GetOptions().ListFields())
        if not is_required or field.name in {"input", "item"}:
            continue
        kind = KINDS.get(field.name)
        if field.message_type:
            required |= {path: value for path, value in SAMPLES.items() if path.startswith(field.name + ".")}
        else:
            required[field.name] = own.of(kind)[0] if kind else SAMPLES[field.name]
    return message(method.name, {**required, **{ITEM_PATHS.get(path, path): value for path, value in named.items()}})


@pytest.mark.parametrize("probe", PROBES, ids=str)
async def test_what_is_somebody_elses_is_as_if_it_were_not_there(
    system: System, of_alice: Belongings, made: Counter[str], probe: Probe
) -> None:
    bob = Caller(system, "bob", made)
    for which in range(max(len(of_alice.of(kind)) for kind in probe.kinds.values())):
        foreign = {path: of_alice.of(kind)[which % len(of_alice.of(kind))] for path, kind in probe.kinds.items()}
        both = (foreign, {path: made_up(value) for path, value in foreign.items()})

        async def request(named: Named) -> Message:
            return request_of(probe.method, named, await belongings_of(system, "bob"))

        first, second = [await bob.try_out(probe.method, await request(named), named) for named in both]
        assert first == second
        if probe.method.input_type.full_name in OPERATIONS:
            for accept in ("application/json", "text/event-stream"):
                first, second = [await bob.post(await request(named), named, accept=accept) for named in both]
                assert first == second


async def test_what_is_ones_own_is_there(system: System, of_alice: Belongings, made: Counter[str]) -> None:
    """The probes hit what they mean to: its owner gets another answer than for what isn't there."""
    alice = Caller(system, "alice", made)
    for name in ("GetThread", "ListItems", "ResumeRun", "CancelRun", "DeleteAttachment", "AddFeedback"):
        probe = next(probe for probe in PROBES if probe.method.name == name)
        own = await belongings_of(system, "alice")
        theirs = {path: own.of(kind)[0] for path, kind in probe.kinds.items()}
        nobodys = {path: made_up(value) for path, value in theirs.items()}
        first, second = [
            await alice.try_out(probe.method, request_of(probe.method, named, own), named)
            for named in (theirs, nobodys)
        ]
        assert first.said != second.said


async def test_nothing_of_the_other_user_was_changed(system: System, of_alice: Belongings) -> None:
    alice = Caller(system, "alice", Counter())
    (thread,) = await alice.call(method("GetThread"), message("GetThread", {"thread_id": of_alice.thread}))
    data = thread.thread.items.data  # type: ignore[attr-defined]  # GetThreadResponse
    assert [item.WhichOneof("item") for item in data] == ["user_message", "assistant_message"]
    (going_on,) = await alice.call(method("GetThread"), message("GetThread", {"thread_id": of_alice.active_thread}))
    assert len(going_on.thread.items.data) == 2  # type: ignore[attr-defined]
    await alice.call(method("DeleteAttachment"), message("DeleteAttachment", {"attachment_id": of_alice.attachment}))
