"""The store, through the interface that the SDK uses, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from chatkit.store import NotFoundError as SDKNotFoundError
from chatkit.types import (
    Annotation,
    AssistantMessageContent,
    AssistantMessageItem,
    ClientToolCallItem,
    ClosedStatus,
    CustomSummary,
    CustomTask,
    EndOfTurnItem,
    FileAttachment,
    GeneratedImage,
    GeneratedImageItem,
    HiddenContextItem,
    ImageAttachment,
    InferenceOptions,
    LockedStatus,
    Page,
    SDKHiddenContextItem,
    StructuredInputFreeform,
    StructuredInputItem,
    TaskItem,
    ThoughtTask,
    Thread,
    ThreadItem,
    ThreadMetadata,
    ToolChoice,
    URLSource,
    UserMessageItem,
    UserMessageTagContent,
    UserMessageTextContent,
    WidgetItem,
    Workflow,
    WorkflowItem,
)
from chatkit.widgets import BasicRoot, DynamicWidgetComponent, DynamicWidgetRoot
from chatkit_grpc.errors import DatabaseError, NotFoundError, ValidationError
from pydantic import AnyUrl

from server import records, statements
from server import store as store_module
from server.context import RequestContext
from server.database import Database, open_database
from server.row_security import with_row_security
from server.runs import statements as run_statements
from server.settings import Settings
from server.store import PostgresStore
from server.text_repair import whole
from tests.database import context_of, settings_of

NOW = datetime(2026, 3, 4, 5, 6, 7, 891234)  # noqa: DTZ001  # naive and local, as the SDK makes them
BASE: dict[str, Any] = {"thread_id": "thr_1", "created_at": NOW}
ATTACHMENT = ImageAttachment(
    id="atc_1", name="a.png", mime_type="image/png", preview_url=AnyUrl("https://x.test/a"), metadata={"bucket": "b"}
)


@pytest.fixture(params=["plain", "behind the wall"])
async def store(database: Database, request: pytest.FixtureRequest) -> PostgresStore:
    """As servers have it, with and without ROW_LEVEL_SECURITY."""
    return PostgresStore(database if request.param == "plain" else await with_row_security(database))


BASIC = BasicRoot(children=DynamicWidgetComponent.model_validate({"type": "Odd", "x": 1}))

ITEMS: list[ThreadItem] = [
    UserMessageItem(
        **BASE,
        id="user",
        content=[
            UserMessageTextContent(text="Hello "),
            UserMessageTagContent(id="t", text="Bob", data={"b": None, "a": 1}, group="people", interactive=True),
        ],
        attachments=[ATTACHMENT],
        quoted_text="quoted",
        inference_options=InferenceOptions(tool_choice=ToolChoice(id="search"), model="m"),
    ),
    AssistantMessageItem(
        **BASE,
        id="assistant",
        content=[
            AssistantMessageContent(
                text="See \N{GRINNING FACE}",
                annotations=[Annotation(source=URLSource(title="t", url="https://x.test"), index=3)],
            ),
            AssistantMessageContent(text="there"),
        ],
    ),
    ClientToolCallItem(**BASE, id="tool", call_id="c", name="weather", arguments={"city": "Paris"}, output=[1, None]),
    WidgetItem(**BASE, id="widget", widget=BASIC, copy_text="c"),
    GeneratedImageItem(**BASE, id="image", image=GeneratedImage(id="i", url="https://x.test/i")),
    StructuredInputItem(**BASE, id="input", inputs=[StructuredInputFreeform(id="q", question="Why?")]),
    WorkflowItem(
        **BASE,
        id="workflow",
        workflow=Workflow(
            type="reasoning",
            tasks=[ThoughtTask(title="Thinking", content="hm")],
            summary=CustomSummary(title="Thought"),
        ),
    ),
    TaskItem(**BASE, id="task", task=CustomTask(title="Doing", icon="search")),
    HiddenContextItem(**BASE, id="hidden", content={"any": [None, 1.5]}),
    SDKHiddenContextItem(**BASE, id="sdk_hidden", content="The user cancelled"),
    EndOfTurnItem(**BASE, id="end"),
]


def thread_of(thread_id: str = "thr_1", **members: Any) -> ThreadMetadata:
    return ThreadMetadata(**{"id": thread_id, "created_at": NOW, **members})


def message(item_id: str, text: str = "Hi", thread_id: str = "thr_1") -> AssistantMessageItem:
    content = [AssistantMessageContent(text=text)]
    return AssistantMessageItem(id=item_id, thread_id=thread_id, created_at=NOW, content=content)


def hidden(item_id: str) -> HiddenContextItem:
    return HiddenContextItem(**BASE, id=item_id, content="secret")


def ids(page: Page[Any]) -> list[str]:
    return [element.id for element in page.data]


Load = Callable[[str | None], Awaitable[Page[Any]]]


async def all_pages(load: Load) -> list[list[str]]:
    """The ids of each page, up to the one that says it is the last."""
    pages: list[list[str]] = []
    after: str | None = None
    while True:
        page = await load(after)
        pages.append(ids(page))
        assert (page.after is None) == (not page.has_more)
        if not page.has_more:
            return pages
        assert page.after == pages[-1][-1]
        after = page.after


@pytest.fixture
async def thread(store: PostgresStore, context: RequestContext) -> ThreadMetadata:
    thread = thread_of()
    await store.save_thread(thread, context)
    return thread


# Threads


async def test_a_thread_comes_back_as_it_was_saved(store: PostgresStore, context: RequestContext) -> None:
    for thread in (
        thread_of("thr_1"),
        thread_of("thr_2", title="T\N{GRINNING FACE}", metadata={"b": [1, None, {"c": 1.5}], "a": 2**70}),
        thread_of("thr_3", status=LockedStatus(reason="why"), allowed_image_domains=["a.test", "b.test"]),
        thread_of("thr_4", status=ClosedStatus(), allowed_image_domains=[]),
    ):
        await store.save_thread(thread, context)
        assert await store.load_thread(thread.id, context) == thread


async def test_saving_a_thread_again_changes_what_it_says_and_not_when_it_began(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    await store.add_thread_item("thr_1", message("a"), context)
    later = thread_of(title="New", status=LockedStatus(), metadata={"k": 1}, created_at=NOW + timedelta(days=1))
    await store.save_thread(later, context)
    await store.add_thread_item("thr_1", message("b"), context)
    assert await store.load_thread("thr_1", context) == later.model_copy(update={"created_at": NOW})
    assert ids(await store.load_thread_items("thr_1", None, 10, "asc", context)) == ["a", "b"]


async def test_a_thread_may_be_saved_with_its_items_aboard(store: PostgresStore, context: RequestContext) -> None:
    await store.save_thread(Thread(id="thr_1", created_at=NOW, items=Page(data=[message("a")])), context)
    assert await store.load_thread("thr_1", context) == thread_of()
    assert ids(await store.load_thread_items("thr_1", None, 10, "asc", context)) == []


async def test_nul_in_titles_and_metadata_is_replaced(store: PostgresStore, context: RequestContext) -> None:
    await store.save_thread(thread_of(title="a\0b", metadata={"k\0": "\0x", "path": "\\u0000"}), context)
    loaded = await store.load_thread("thr_1", context)
    assert loaded.title == "a\ufffdb"
    assert loaded.metadata == {"k\ufffd": "\ufffdx", "path": "\\u0000"}


# What happens to a thread while it is being answered


async def test_a_deleted_thread_stays_deleted(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    run = context_of("alice")
    loaded = await store.load_thread("thr_1", run)
    await store.delete_thread("thr_1", context)
    loaded.title = "New"
    for late in (
        store.save_thread(loaded, run),
        store.save_thread(thread, context),
        store.add_thread_item("thr_1", message("a"), run),
        store.save_item("thr_1", message("a"), run),
        store.rename_thread("thr_1", "Mine", run),
        store.load_thread("thr_1", context),
    ):
        with pytest.raises(NotFoundError) as caught:
            await late
        assert caught.value.code == "THREAD_NOT_FOUND"


async def test_a_rename_survives_a_run_that_changes_something_else(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    run = context_of("alice")
    loaded = await store.load_thread("thr_1", run)
    await store.rename_thread("thr_1", "Mine", context)
    for number in range(2):
        loaded.metadata["n"] = number
        await store.save_thread(loaded, run)
        assert await store.load_thread("thr_1", context) == thread_of(title="Mine", metadata={"n": number})
    # The assistant has seen the new title, and the core still has the old one.
    assert (await store.load_thread("thr_1", run)).title == "Mine"
    loaded.status = ClosedStatus()
    await store.save_thread(loaded, run)
    expected = thread_of(title="Mine", metadata={"n": 1}, status=ClosedStatus())
    assert await store.load_thread("thr_1", context) == expected


async def test_a_run_names_a_thread_unless_its_user_does(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    run = context_of("alice")
    loaded = await store.load_thread("thr_1", run)
    for title in ("First", "Second"):
        loaded.title = title
        await store.save_thread(loaded, run)
        assert (await store.load_thread("thr_1", context)).title == title
    await store.rename_thread("thr_1", "Mine", context)
    loaded.title = "Third"
    await store.save_thread(loaded, run)
    assert (await store.load_thread("thr_1", context)).title == "Mine"


async def test_a_change_that_is_taken_back_is_saved(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    loaded = (await store.load_threads(5, None, "asc", context)).data[0]
    for status in (LockedStatus(reason="busy"), thread.status):
        loaded.status = status
        await store.save_thread(loaded, context)
        assert (await store.load_thread("thr_1", context_of("alice"))).status == status


async def test_what_is_known_of_one_users_thread_says_nothing_of_anothers(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    bob = RequestContext(context, user_id="bob")
    await store.save_thread(thread_of(title="bob's"), bob)
    assert (await store.load_thread("thr_1", bob)).title == "bob's"
    assert (await store.load_thread("thr_1", context)).title is None


async def test_a_rename_gives_the_whole_thread_back(store: PostgresStore, context: RequestContext) -> None:
    thread = thread_of(status=LockedStatus(reason="why"), allowed_image_domains=["a.test"], metadata={"k": [1]})
    await store.save_thread(thread, context)
    renamed = await store.rename_thread("thr_1", "New\0", context_of("alice"))
    assert renamed == thread.model_copy(update={"title": "New\ufffd"}) == await store.load_thread("thr_1", context)


async def test_deleting_a_thread_takes_its_items_and_feedback_along(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext, database: Database
) -> None:
    await store.add_thread_item("thr_1", message("a"), context)
    await store.save_feedback("thr_1", ["a"], "positive", context)
    await store.save_attachment(ATTACHMENT.model_copy(update={"thread_id": "thr_1"}), context)
    await store.delete_thread("thr_1", context)
    for load in (store.load_thread("thr_1", context), store.load_item("thr_1", "a", context)):
        with pytest.raises(NotFoundError):
            await load
    assert await database.fetchval("select count(*) from feedback") == 0
    assert await store.load_attachment("atc_1", context) == ATTACHMENT


async def test_all_threads_come_by_pages_in_both_directions(store: PostgresStore, context: RequestContext) -> None:
    # Each time occurs twice, and the ids run against the times.
    for number in range(7):
        created_at = NOW + timedelta(seconds=number // 2)
        await store.save_thread(thread_of(f"thr_{9 - number}", created_at=created_at), context)
    ascending = ["thr_8", "thr_9", "thr_6", "thr_7", "thr_4", "thr_5", "thr_3"]
    for order, expected in (("asc", ascending), ("desc", ascending[::-1])):
        for size in (1, 2, 3, 7, 8):
            pages = await all_pages(lambda after, s=size, o=order: store.load_threads(s, after, o, context))  # type: ignore[misc]
            assert [name for page in pages for name in page] == expected
            assert {len(page) for page in pages[:-1]} <= {size}


async def test_the_page_after_the_last_thread_is_empty(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    assert await store.load_threads(10, "thr_1", "desc", context) == Page[ThreadMetadata]()


# Items


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.type)
async def test_an_item_of_any_kind_comes_back_as_it_was_saved(
    item: ThreadItem, store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    await store.add_thread_item("thr_1", item, context)
    loaded = await store.load_item("thr_1", item.id, context)
    assert loaded == item
    assert loaded.model_dump_json() == item.model_dump_json()


def test_the_samples_are_of_all_kinds() -> None:
    kinds = {kind.model_fields["type"].default for kind in ThreadItem.__origin__.__args__}  # type: ignore[attr-defined]
    assert {item.type for item in ITEMS} == kinds


async def test_free_json_keeps_its_order_numbers_nulls_and_characters(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    text = (
        '{"z":1,"a":100000.0,"b":100000,"big":1180591620717411303424,"f":0.1,"minus":-0.0,'
        '"nul":"a\\u0000b","emoji":"\N{GRINNING FACE}","null":null,"list":[null,{"x":null}],"":""}'
    )
    item = ClientToolCallItem(**BASE, id="tool", call_id="c", name="n\0", arguments=json.loads(text))
    await store.add_thread_item("thr_1", item, context)
    loaded = await store.load_item("thr_1", "tool", context)
    assert isinstance(loaded, ClientToolCallItem)
    assert json.dumps(loaded.arguments, ensure_ascii=False, separators=(",", ":")) == text
    assert loaded.name == "n\0"


@pytest.mark.parametrize("root", ["Card", "ListView", "Basic"])
async def test_a_widget_from_a_template_keeps_what_the_sdk_does_not_know(
    root: str, store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    children = [{"type": "Text", "value": "x", "odd": {"k": [1]}}, {"type": "Unheard", "z": 2}]
    widget = DynamicWidgetRoot.model_validate(
        {"type": root, "size": "md", "extra": {"b": 1, "a": 2}, "children": children}
    )
    item = WidgetItem(**BASE, id="widget", widget=widget)
    await store.add_thread_item("thr_1", item, context)
    assert (await store.load_item("thr_1", "widget", context)).model_dump_json() == item.model_dump_json()


async def test_an_item_saved_again_stays_where_it_is(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    for item_id in "abc":
        await store.add_thread_item("thr_1", message(item_id), context)
    await store.add_thread_item("thr_1", message("a", "again"), context)
    await store.save_item("thr_1", message("b", "again"), context)
    await store.save_item("thr_1", message("d", "new"), context)
    page = await store.load_thread_items("thr_1", None, 10, "asc", context)
    assert page.data == [message("a", "again"), message("b", "again"), message("c"), message("d", "new")]


async def test_the_same_item_id_may_occur_on_each_thread_of_each_user(store: PostgresStore) -> None:
    places = [(user, thread_id) for user in ("alice", "bob") for thread_id in ("thr_1", "thr_2")]
    for user, thread_id in places:
        await store.save_thread(thread_of(thread_id), context_of(user))
        await store.add_thread_item(thread_id, message("__fake_id__", user + thread_id, thread_id), context_of(user))
    for user, thread_id in places:
        item = await store.load_item(thread_id, "__fake_id__", context_of(user))
        assert item == message("__fake_id__", user + thread_id, thread_id)


async def test_fifty_items_added_at_once_all_get_a_place_of_their_own(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext, database: Database
) -> None:
    await asyncio.gather(*(store.add_thread_item("thr_1", message(f"m{n}"), context) for n in range(50)))
    positions = [row[0] for row in await database.fetch("select position from chat_messages order by position")]
    assert positions == list(range(1, 51))
    page = await store.load_thread_items("thr_1", None, 50, "asc", context)
    assert sorted(ids(page)) == sorted(f"m{n}" for n in range(50))


async def test_sixteen_threads_at_once_do_not_get_in_each_others_way(
    store: PostgresStore, context: RequestContext
) -> None:
    async def talk(thread_id: str) -> None:
        await store.save_thread(thread_of(thread_id), context)
        for number in range(10):
            await store.add_thread_item(thread_id, message(f"m{number}", thread_id=thread_id), context)

    await asyncio.gather(*(talk(f"thr_{n}") for n in range(16)))
    for n in range(16):
        page = await store.load_thread_items(f"thr_{n}", None, 100, "desc", context)
        assert ids(page) == [f"m{number}" for number in reversed(range(10))]


async def test_one_item_saved_many_times_at_once_is_one_item(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    await asyncio.gather(*(store.save_item("thr_1", message("a", str(n)), context) for n in range(20)))
    assert ids(await store.load_thread_items("thr_1", None, 10, "asc", context)) == ["a"]


async def test_an_item_needs_its_thread(store: PostgresStore, context: RequestContext) -> None:
    for save in (store.add_thread_item, store.save_item):
        with pytest.raises(NotFoundError) as caught:
            await save("thr_none", message("a"), context)
        assert (caught.value.code, caught.value.metadata) == ("THREAD_NOT_FOUND", {"thread_id": "thr_none"})


async def test_what_is_missing_is_missing_for_the_sdk_too(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    calls: list[tuple[Awaitable[Any], str, dict[str, str]]] = [
        (store.load_thread("x", context), "THREAD_NOT_FOUND", {"thread_id": "x"}),
        (store.delete_thread("x", context), "THREAD_NOT_FOUND", {"thread_id": "x"}),
        (store.load_thread_items("x", None, 5, "asc", context), "THREAD_NOT_FOUND", {"thread_id": "x"}),
        (store.load_visible_items("x", "y", 5, "asc", context), "THREAD_NOT_FOUND", {"thread_id": "x"}),
        (store.load_item("thr_1", "x", context), "ITEM_NOT_FOUND", {"thread_id": "thr_1", "item_id": "x"}),
        (store.load_attachment("x", context), "ATTACHMENT_NOT_FOUND", {"attachment_id": "x"}),
        (store.delete_attachment("x", context), "ATTACHMENT_NOT_FOUND", {"attachment_id": "x"}),
        (store.load_thread("x\0", context), "THREAD_NOT_FOUND", {"thread_id": "x\0"}),
    ]
    for call, code, metadata in calls:
        with pytest.raises(SDKNotFoundError) as caught:
            await call
        assert isinstance(caught.value, NotFoundError)
        assert (caught.value.code, caught.value.metadata) == (code, metadata)


async def test_an_error_repeats_only_the_beginning_of_what_was_asked_for(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    long = "x" * 100_000
    for call in (
        store.load_thread(long, context),
        store.load_item("thr_1", long, context),
        store.require_items("thr_1", [long], context),
        store.load_attachment(long, context),
        store.load_threads(5, long, "asc", context),
        store.load_thread_items("thr_1", long, 5, "asc", context),
    ):
        with pytest.raises((NotFoundError, ValidationError)) as caught:
            await call
        assert "x" * 200 in caught.value.metadata.values()


async def test_deleting_an_item_that_is_not_there_does_nothing(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    await store.add_thread_item("thr_1", message("a"), context)
    for item_id in ("a", "a", "never"):
        await store.delete_thread_item("thr_1", item_id, context)
    assert await store.load_thread_items("thr_1", None, 5, "asc", context) == Page[ThreadItem]()


# Characters that are none


HALVES = "\ud83d" + "\ude00"  # an emoji, as a model says it that splits it over two deltas


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        (HALVES, "\N{GRINNING FACE}"),
        ("a\ud83db", "a\ufffdb"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ufeffa\ud83d", "\ufeffa\ufffd"),
        ("\0\ud83d" + HALVES, "\0\ufffd\N{GRINNING FACE}"),
    ],
)
def test_halves_of_an_emoji_are_joined_and_what_is_alone_is_replaced(broken: str, repaired: str) -> None:
    assert whole(broken) == repaired
    assert whole({broken: [1, None, {"k": broken}, (broken,)]}) == {repaired: [1, None, {"k": repaired}, [repaired]]}


async def test_an_answer_with_a_split_emoji_is_kept(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext, database: Database
) -> None:
    await store.add_thread_item("thr_1", message("a", f"Hi {HALVES} \ud83d!"), context)
    said = "Hi \N{GRINNING FACE} \ufffd!"
    assert await store.load_item("thr_1", "a", context) == message("a", said)
    assert await database.fetchval("select content from chat_messages") == said


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.type)
async def test_an_item_of_any_kind_is_repaired_and_otherwise_the_same(
    item: ThreadItem, store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    await store.add_thread_item("thr_1", item.model_copy(update={"id": f"x{HALVES}"}), context)
    loaded = await store.load_item("thr_1", "x\N{GRINNING FACE}", context)
    assert loaded.model_dump_json() == item.model_copy(update={"id": "x\N{GRINNING FACE}"}).model_dump_json()


async def test_free_json_titles_and_attachments_are_repaired(store: PostgresStore, context: RequestContext) -> None:
    await store.save_thread(thread_of(title=HALVES, metadata={HALVES: [HALVES, 1.5, None]}), context)
    face = "\N{GRINNING FACE}"
    assert await store.load_thread("thr_1", context) == thread_of(title=face, metadata={face: [face, 1.5, None]})
    assert (await store.rename_thread("thr_1", f"{HALVES}2", context)).title == f"{face}2"
    tool = ClientToolCallItem(**BASE, id="tool", call_id="c", name="n", arguments={HALVES: (HALVES, float("inf"))})
    await store.add_thread_item("thr_1", tool, context)
    loaded = await store.load_item("thr_1", "tool", context)
    assert isinstance(loaded, ClientToolCallItem)
    assert loaded.arguments == {face: [face, None]}
    await store.save_attachment(ATTACHMENT.model_copy(update={"name": HALVES}), context)
    assert await store.load_attachment("atc_1", context) == ATTACHMENT.model_copy(update={"name": face})


# Pages of items


@pytest.fixture
async def mixed(store: PostgresStore, thread: ThreadMetadata, context: RequestContext) -> list[str]:
    """The ids of a thread's items, where those with an "h" are hidden."""
    names = ["h0", "1", "h2", "h3", "h4", "5", "6", "h7", "8", "h9"]
    for name in names:
        await store.add_thread_item("thr_1", hidden(name) if name[0] == "h" else message(name), context)
    return names


async def test_all_items_come_by_pages_in_both_directions(
    mixed: list[str], store: PostgresStore, context: RequestContext
) -> None:
    visible = [name for name in mixed if name[0] != "h"]
    for load, names in ((store.load_thread_items, mixed), (store.load_visible_items, visible)):
        for order, expected in (("asc", names), ("desc", names[::-1])):
            for size in (1, 2, 3, len(names), 100):
                pages = await all_pages(lambda after, f=load, s=size, o=order: f("thr_1", after, s, o, context))  # type: ignore[misc]
                assert pages == [expected[at : at + size] for at in range(0, len(expected), size)]


async def test_a_page_may_go_on_after_any_item_hidden_or_not(
    mixed: list[str], store: PostgresStore, context: RequestContext
) -> None:
    for at, name in enumerate(mixed):
        rest = [other for other in mixed[at + 1 :] if other[0] != "h"]
        assert ids(await store.load_visible_items("thr_1", name, 100, "asc", context)) == rest
        before = mixed[:at][::-1]
        assert ids(await store.load_thread_items("thr_1", name, 100, "desc", context)) == before


async def test_an_unknown_cursor_is_refused(mixed: list[str], store: PostgresStore, context: RequestContext) -> None:
    for call in (
        store.load_threads(5, "nowhere", "desc", context),
        store.load_thread_items("thr_1", "nowhere", 5, "asc", context),
        store.load_visible_items("thr_1", "nowhere", 5, "desc", context),
    ):
        with pytest.raises(ValidationError) as caught:
            await call
        assert (caught.value.code, caught.value.metadata) == ("UNKNOWN_CURSOR", {"after": "nowhere"})


async def test_a_limit_below_one_is_one_and_a_huge_one_is_cut(
    mixed: list[str], store: PostgresStore, context: RequestContext
) -> None:
    assert ids(await store.load_thread_items("thr_1", None, 0, "asc", context)) == ["h0"]
    assert ids(await store.load_thread_items("thr_1", None, 2**70, "asc", context)) == mixed


async def test_others_get_their_turn_while_a_large_page_is_read(
    store: PostgresStore,
    thread: ThreadMetadata,
    context: RequestContext,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await store.add_thread_item("thr_1", message("a"), context)
    await database.fetch(
        """
        insert into chat_messages
            (user_id, session_id, message_id, position, item_type, sender_type, "timestamp", item)
        select user_id, session_id, 'm' || n, n, item_type, sender_type, "timestamp", item
        from chat_messages, generate_series(2, 2000) n
        """
    )
    await database.fetch(
        "insert into chat_sessions (user_id, session_id) select 'alice', 't' || n from generate_series(2, 2000) n"
    )
    turns = 0
    parsed_in: list[int] = []

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    def noting(parse: Callable[[asyncpg.Record], Any]) -> Callable[[asyncpg.Record], Any]:
        def noted(row: asyncpg.Record) -> Any:
            parsed_in.append(turns)
            return parse(row)

        return noted

    monkeypatch.setattr(store_module, "item_of", noting(records.item_of))
    monkeypatch.setattr(store_module, "thread_of", noting(records.thread_of))
    working = asyncio.create_task(others())
    for load in (
        lambda: store.load_thread_items("thr_1", None, 5000, "asc", context),
        lambda: store.load_threads(5000, None, "asc", context),
    ):
        parsed_in.clear()
        page: Page[Any] = await load()
        assert len(page.data) == 2000
        assert set(Counter(parsed_in).values()) == {200}
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_an_order_that_is_none_is_refused(store: PostgresStore, context: RequestContext) -> None:
    with pytest.raises(ValidationError):
        await store.load_threads(5, None, "sideways", context)


# Attachments and feedback


async def test_an_attachment_comes_back_with_its_metadata(store: PostgresStore, context: RequestContext) -> None:
    attachments = (ATTACHMENT, FileAttachment(id="atc_2", name="n\0", mime_type="text/plain", metadata={"b": None}))
    for attachment in attachments:
        await store.save_attachment(attachment, context)
        assert await store.load_attachment(attachment.id, context) == attachment
    linked = ATTACHMENT.model_copy(update={"thread_id": "thr_1"})
    await store.save_attachment(linked, context)
    assert await store.load_attachment("atc_1", context) == linked
    await store.delete_attachment("atc_1", context)
    with pytest.raises(NotFoundError):
        await store.load_attachment("atc_1", context)


async def feedback_in(database: Database) -> dict[str, str]:
    return {row[0]: row[1] for row in await database.fetch("select message_id, kind from feedback")}


async def test_feedback_is_written_for_all_items_or_for_none(
    mixed: list[str], store: PostgresStore, context: RequestContext, database: Database
) -> None:
    await store.save_feedback("thr_1", ["1", "5", "1"], "positive", context)
    await store.save_feedback("thr_1", ["5"], "negative", context)
    for missing in ("nowhere", "h2"):
        wanted = ["1", missing, "8"]
        for call in (
            store.save_feedback("thr_1", wanted, "negative", context),
            store.require_items("thr_1", wanted, context),
        ):
            with pytest.raises(NotFoundError) as caught:
                await call
            assert caught.value.metadata == {"thread_id": "thr_1", "item_id": missing}
    await store.require_items("thr_1", ["1", "5", "1"], context)
    with pytest.raises(NotFoundError) as caught:
        await store.save_feedback("thr_2", ["1"], "negative", context)
    assert caught.value.code == "THREAD_NOT_FOUND"
    assert await feedback_in(database) == {"1": "positive", "5": "negative"}


async def test_feedback_on_the_same_items_at_once_does_not_lock_up(
    mixed: list[str], store: PostgresStore, context: RequestContext, database: Database
) -> None:
    orders = [["1", "5", "6", "8"], ["8", "6", "5", "1"]] * 10
    await asyncio.gather(*(store.save_feedback("thr_1", order, "positive", context) for order in orders))
    assert len(await feedback_in(database)) == 4


# Isolation


async def test_what_belongs_to_another_user_does_not_exist(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext, database: Database
) -> None:
    await store.add_thread_item("thr_1", message("a"), context)
    await store.save_attachment(ATTACHMENT, context)
    bob = context_of("bob")
    for call in (
        store.load_thread("thr_1", bob),
        store.delete_thread("thr_1", bob),
        store.load_thread_items("thr_1", None, 5, "asc", bob),
        store.load_visible_items("thr_1", "a", 5, "asc", bob),
        store.load_item("thr_1", "a", bob),
        store.add_thread_item("thr_1", message("b"), bob),
        store.save_item("thr_1", message("a", "bob's"), bob),
        store.save_feedback("thr_1", ["a"], "negative", bob),
        store.require_items("thr_1", [], bob),
        store.load_attachment("atc_1", bob),
        store.delete_attachment("atc_1", bob),
    ):
        with pytest.raises(NotFoundError):
            await call
    await store.delete_thread_item("thr_1", "a", bob)
    assert await store.load_threads(5, None, "asc", bob) == Page[ThreadMetadata]()
    with pytest.raises(ValidationError):
        await store.load_threads(5, "thr_1", "asc", bob)
    assert (await store.load_thread_items("thr_1", None, 5, "asc", context)).data == [message("a")]
    assert await store.load_attachment("atc_1", context) == ATTACHMENT
    assert await feedback_in(database) == {}


async def test_a_thread_id_that_another_user_has_is_free(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext
) -> None:
    bob = context_of("bob")
    await store.add_thread_item("thr_1", message("a", "alice's"), context)
    await store.save_thread(thread_of(title="bob's"), bob)
    await store.add_thread_item("thr_1", message("a", "bob's"), bob)
    await store.save_attachment(ATTACHMENT.model_copy(update={"name": "bob's"}), bob)
    await store.save_attachment(ATTACHMENT, context)
    assert (await store.load_thread("thr_1", context)).title is None
    assert await store.load_item("thr_1", "a", context) == message("a", "alice's")
    assert (await store.load_attachment("atc_1", bob)).name == "bob's"
    await store.delete_thread("thr_1", bob)
    assert await store.load_item("thr_1", "a", context) == message("a", "alice's")


def test_every_statement_names_its_user() -> None:
    sql = [value for name, value in vars(statements).items() if re.match("[A-Z]", name) and isinstance(value, str)]
    assert len(sql) == 26
    names = "chat_sessions|chat_messages|attachments|attachment_usage|feedback|thread_events|runs|run_events"
    for statement in sql:
        tables = re.findall(rf"(?:from|update|into) (?:{names})\b", statement)
        assert tables
        users = re.findall(r"user_id = \$1|values \(\$1|select \$1", statement)
        assert len(users) == len(tables), statement


OF_A_SERVER = {
    *("APPEND_LOG", "READ_LOG", "PROMISE_TO_WATCH", "READ_THREAD_EVENTS", "HEARTBEAT"),  # of many users at once
    *("ORPHANED_RUNS", "RUNS_OF_SERVER"),
}
"""Statements of runs that are no single user's."""


def test_every_statement_of_a_run_names_its_user_unless_it_is_a_servers() -> None:
    sql = {name: value for name, value in vars(run_statements).items() if re.match("[A-Z]", name)}
    names = "chat_sessions|chat_messages|thread_events|runs|run_events"
    touching = {name for name, statement in sql.items() if re.search(rf"\b(?:{names})\b", statement)}
    unscoped = {name for name in touching if not re.search(r"user_id = \$1|select \$1", sql[name])}
    assert unscoped == OF_A_SERVER
    for name in ("READ_LOG", "READ_THREAD_EVENTS", "PROMISE_TO_WATCH"):
        assert "$1::text[]" in sql[name]  # the users, each beside what is asked of him


# Ids and times


def test_ids_have_the_sdks_prefixes_and_sort_by_time(store: PostgresStore, context: RequestContext) -> None:
    made = [store.generate_thread_id(context) for _ in range(1000)]
    assert made == sorted(set(made))
    assert all(re.fullmatch(r"thr_[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", thread_id) for thread_id in made)
    kinds = {"message": "msg_", "tool_call": "tc_", "task": "tsk_", "workflow": "wf_", "sdk_hidden_context": "shcx_"}
    for kind, prefix in kinds.items():
        assert store.generate_item_id(kind, thread_of(), context).startswith(prefix)  # type: ignore[arg-type]


@pytest.fixture
async def shanghai(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


async def test_times_are_stored_in_utc_and_come_back_local(
    shanghai: None, store: PostgresStore, thread: ThreadMetadata, context: RequestContext, database: Database
) -> None:
    await store.add_thread_item("thr_1", message("a"), context)
    utc = datetime(2026, 3, 3, 21, 6, 7, 891234, UTC)
    row = await database.fetchrow('select "timestamp", item from chat_messages')
    assert row is not None
    assert (row["timestamp"], json.loads(row["item"])["created_at"]) == (utc, "2026-03-03T21:06:07.891234Z")
    assert await database.fetchval("select created_at from chat_sessions") == utc
    assert (await store.load_item("thr_1", "a", context)).created_at == NOW
    assert (await store.load_thread("thr_1", context)).created_at == NOW
    await store.save_item("thr_1", message("a").model_copy(update={"created_at": utc}), context)
    assert (await store.load_item("thr_1", "a", context)).created_at == NOW


# What is written for people who read the tables


async def test_the_tables_tell_who_said_what(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext, database: Database
) -> None:
    for item in ITEMS:
        await store.add_thread_item("thr_1", item, context)
    rows = await database.fetch("select message_id, sender_type, content, metadata from chat_messages")
    assert {row["message_id"]: (row["sender_type"], row["content"]) for row in rows} == {
        "user": ("user", "Hello @Bob"),
        "assistant": ("assistant", "See \N{GRINNING FACE}\nthere"),
        "tool": ("tool", "weather"),
        "widget": ("assistant", "c"),
        "image": ("assistant", ""),
        "input": ("assistant", "Why?"),
        "workflow": ("assistant", "Thought\nThinking\nhm"),
        "task": ("assistant", "Doing"),
        "hidden": ("tool", ""),
        "sdk_hidden": ("tool", ""),
        "end": ("assistant", ""),
    }
    assert {row["metadata"] for row in rows} == {"{}"}


# The database under it


async def test_a_lost_connection_fails_one_request_at_most(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext, database: Database
) -> None:
    await asyncio.gather(*(store.load_thread("thr_1", context) for _ in range(10)))
    connection = await asyncpg.connect(database.url)
    kill = """
        select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid()
    """
    sleeping = """
        select exists (
            select from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and wait_event = 'PgSleep'
        )
    """
    waiting = asyncio.create_task(database.fetch("select pg_sleep(5)"))
    while not await connection.fetchval(sleeping):
        await asyncio.sleep(0.01)
    await connection.fetch(kill)
    await connection.close()
    with pytest.raises(DatabaseError) as caught:
        await waiting
    assert (caught.value.code, caught.value.message) == ("DATABASE_UNAVAILABLE", "The database can't be reached.")
    for _ in range(10):
        assert await store.load_thread("thr_1", context) == thread


async def test_a_query_that_takes_too_long_is_given_up(database_url: str) -> None:
    async with open_database(settings_of(database_url, pool_size=1, timeout=0.3)) as database:
        slow = [database.fetch("select pg_sleep(10)") for _ in range(2)]  # the second waits for the connection
        for outcome in await asyncio.gather(*slow, return_exceptions=True):
            assert isinstance(outcome, DatabaseError)
            assert outcome.code == "DATABASE_UNAVAILABLE"
        await database.ping()


async def test_a_cancelled_request_leaves_the_pool_whole(database_url: str) -> None:
    async with open_database(settings_of(database_url, pool_size=2)) as database:
        tasks = [asyncio.create_task(database.fetch("select pg_sleep(10)")) for _ in range(6)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(database.ping() for _ in range(6)))


async def test_an_error_tells_nothing_of_what_is_stored(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext, database: Database
) -> None:
    await store.add_thread_item("thr_1", message("a", "secret"), context)
    with pytest.raises(DatabaseError) as caught:
        await database.fetch("update chat_messages set sender_type = content")
    assert str(caught.value) == "The database failed (CheckViolationError, 23514)."
    assert (caught.value.code, caught.value.metadata) == ("DATABASE_FAILED", {"sqlstate": "23514"})
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_an_item_of_a_kind_that_is_not_known_is_an_error_without_its_text(
    store: PostgresStore, thread: ThreadMetadata, context: RequestContext, database: Database
) -> None:
    await store.add_thread_item("thr_1", message("a"), context)
    await database.fetch("""update chat_messages set item = '{"type": "hologram", "text": "secret"}'""")
    with pytest.raises(DatabaseError) as caught:
        await store.load_item("thr_1", "a", context)
    assert caught.value.metadata == {"item_id": "a"}
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


async def test_everything_works_without_prepared_statements(database_url: str, context: RequestContext) -> None:
    async with open_database(settings_of(database_url, statement_cache=False)) as database:
        store = PostgresStore(database)
        await store.save_thread(thread_of(), context)
        await asyncio.gather(*(store.add_thread_item("thr_1", message(f"m{n}"), context) for n in range(20)))
        assert len((await store.load_thread_items("thr_1", None, 50, "asc", context)).data) == 20
        # A prepared statement that outlives its use would be seen here.
        assert await database.fetchval("select count(*) from pg_prepared_statements where name <> ''") == 0


@pytest.mark.parametrize(
    ("url", "description"),
    [
        ("postgresql://me:secret@db.test:5432/chat?sslmode=require", "PostgreSQL at db.test:5432/chat"),
        ("postgresql://me:secret@a.test:1,b.test:2/chat", "PostgreSQL at a.test:1,b.test:2/chat"),
        ("postgresql:///chat?host=/run/postgresql&password=secret", "PostgreSQL at /run/postgresql/chat"),
        ("postgresql://me:sec/ret@db.test/chat", "PostgreSQL"),
        ("postgresql://me:sec#ret@db.test/chat", "PostgreSQL"),
        ("postgresql://me:secret@[db.test/chat", "PostgreSQL"),
    ],
)
def test_a_database_is_described_without_its_password(url: str, description: str) -> None:
    assert Settings(database_url=url).database_description == description


def nodes_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan] + [node for child in plan.get("Plans", []) for node in nodes_of(child)]


async def plans(database: Database, statement: str, *values: object) -> list[list[dict[str, Any]]]:
    """How it is run with these values, and how it is run once the plan is kept for any values."""
    explain = f"explain (analyze, format json) {statement}"
    found: list[list[dict[str, Any]]] = []
    async with database.pool.acquire() as connection, connection.transaction():
        for mode in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"set local plan_cache_mode = {mode}")
            found.append(nodes_of(json.loads(await connection.fetchval(explain, *values))[0]["Plan"]))
    return found


async def test_every_page_reads_an_index_and_only_the_rows_it_shows(database: Database) -> None:
    await database.fetch(
        """
        insert into chat_sessions (user_id, session_id, created_at)
        select 'user' || u, 'thr' || n, timestamptz '2026-01-01' + n * interval '1 second'
        from generate_series(1, 3) u, generate_series(1, 1000) n
        """
    )
    # Nine of ten items are hidden.
    await database.fetch(
        """
        insert into chat_messages
            (user_id, session_id, message_id, position, item_type, sender_type, "timestamp", item)
        select 'user1', 'thr' || t, 'msg' || n, n,
            case when n % 10 = 0 then 'assistant_message' else 'hidden_context_item' end, 'tool', now(), '{}'
        from generate_series(1, 3) t, generate_series(1, 2000) n
        """
    )
    await database.fetch("analyze chat_sessions, chat_messages")
    pages: list[tuple[str, tuple[object, ...]]] = []
    for after in (None, "thr500"):
        pages += [(sql, ("user1", after, 21)) for sql in (statements.LOAD_THREADS_ASC, statements.LOAD_THREADS_DESC)]
    for after in (None, "msg1000"):
        pages += [
            (getattr(statements, name), ("user1", "thr1", after, 21))
            for name in vars(statements)
            if re.fullmatch("LOAD_.*ITEMS_(ASC|DESC)", name)
        ]
    assert len(pages) == 12
    for statement, values in pages:
        for nodes in await plans(database, statement, *values):
            assert not {node["Node Type"] for node in nodes} & {"Seq Scan", "Sort", "Bitmap Heap Scan"}, nodes
            assert max(node["Actual Rows"] for node in nodes) <= 21
            assert sum(node.get("Rows Removed by Filter", 0) for node in nodes) == 0
