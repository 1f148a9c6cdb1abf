"""Search, through both doors: what is found, in which order, what is shown of it, and what is never found."""
# ruff: noqa: RUF001 # people write in many scripts

from __future__ import annotations

import asyncio
import base64
import random
import sys
import time
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import grpc
import pytest
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageItem,
    ClientToolCallItem,
    HiddenContextItem,
    InferenceOptions,
    ThreadItem,
    ThreadMetadata,
    UserMessageItem,
    UserMessageTextContent,
)
from chatkit_grpc.errors import from_rpc_error
from chatkit_grpc.v1 import thread_service_pb2 as pb

from server.context import RequestContext
from server.database import Database, open_database
from server.row_security import with_row_security
from server.search.query import parse
from server.search.search import Search
from server.search.snippets import LENGTH, find_matches, snippet
from server.search.words import LONGEST_TEXT, LONGEST_WORD, words
from server.store import PostgresStore
from tests.database import context_of, execute, fresh_database, settings_of, with_database
from tests.issuer import hs256
from tests.page import body_of, post
from tests.scripted import ScriptedServer
from tests.system import PRODUCTION, System, open_system

_numbers = count(1)
BEGAN = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
SEARCH_THREADS = "/chatkit_grpc.v1.ThreadService/SearchThreads"


def metadata_of(user: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {hs256(sub=user)}"),)


class Person:
    """Somebody with threads of his own, who searches them."""

    def __init__(self, system: System, name: str | None = None) -> None:
        self.system = system
        self.name = name or f"user_{next(_numbers)}"
        self.context: RequestContext = context_of(self.name)
        self.store = system.server.store

    async def thread(self, *said: str | ThreadItem, title: str | None = None, at: int = 0) -> str:
        """A thread on which things were said; at: minutes after all began."""
        thread_id, when = f"thr_{next(_numbers)}", (BEGAN + timedelta(minutes=at)).astimezone().replace(tzinfo=None)
        await self.store.save_thread(ThreadMetadata(id=thread_id, created_at=when, title=title), self.context)
        for number, text in enumerate(said):
            await self.say(thread_id, text, when + timedelta(seconds=number + 1))
        return thread_id

    async def say(self, thread_id: str, said: str | ThreadItem, when: datetime | None = None) -> str:
        item = said if not isinstance(said, str) else assistant(thread_id, said, when or datetime.now())
        await self.store.add_thread_item(thread_id, item, self.context)
        return item.id

    async def answer(self, query: object, **params: Any) -> Any:
        headers = {"authorization": f"Bearer {hs256(sub=self.name)}"}
        return await post(self.system, body_of("threads.search", query=query, **params), **headers)

    async def page(self, query: str, **params: Any) -> Any:
        answer = await self.answer(query, **params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def finds(self, query: str) -> list[str]:
        call: Any = self.system.channel.unary_unary(SEARCH_THREADS)
        body = await call(pb.SearchThreadsRequest(query=query).SerializeToString(), metadata=metadata_of(self.name))
        return [found.thread.id for found in pb.SearchThreadsResponse.FromString(body).data]

    async def refusal(self, query: object, **params: Any) -> tuple[int, str]:
        answer = await self.answer(query, **params)
        return answer.status_code, answer.json()["error"]["message"]


def assistant(thread_id: str, text: str, when: datetime) -> AssistantMessageItem:
    content = [AssistantMessageContent(text=text)]
    return AssistantMessageItem(id=f"msg_{next(_numbers)}", thread_id=thread_id, created_at=when, content=content)


@pytest.fixture(scope="module", params=[False, True], ids=["", "behind the wall"])
async def system(request: pytest.FixtureRequest, postgres_url: str, migrated_template: str) -> AsyncIterator[System]:
    settings = replace(PRODUCTION, row_level_security=request.param)
    async with (
        fresh_database(postgres_url, migrated_template) as database_url,
        open_system(database_url, ScriptedServer, server=settings) as system,
    ):
        yield system


@pytest.fixture
def alice(system: System) -> Person:
    return Person(system)


SAID = "Café Müller serves the best cold brew, e-mail ada@example.com or call 555-1234. Straße, ΟΔΟΣ, Ёлка."
FINDS = [
    "cafe", "CAFÉ muller", "MÜLLER Café", "brew cold", '"cold brew"', "cold-brew", "col", "best bre", '"the best"',
    "ada@example.com", "example.com", "e-mail", "555 1234", "555-12", "straße", "οδος", "ΟΔΟΣ", "елка", "ЁЛ",
    "tea or brew", "tea OR coffee or cold", "brew -tea", 'brew -"brew cold"', '"cold brew', "brew -", "brew or",
    'brew "',
    "  brew  ", "cold ... brew!!", "(cold) & brew | *", "ｃｏｌｄ ｂｒｅｗ", "cold:*", "'brew'", "brew\\",
    "cafe\u0301", "mu\u0308", '-tea brew', "brew OR OR tea",
]  # fmt: skip
MISSES = [
    "tea", "brew tea", '"brew cold"', "brew -cold", 'brew -"cold brew"', "rew", "col ", '"col" brew', "bre cold",
    "tea or coffee", '"cold bre"', "cold-bre ", "brew -best", "cafe -mul tea", "colds", "5551234",
]  # fmt: skip


async def test_words_are_found_as_people_type_them(alice: Person) -> None:
    thread_id = await alice.thread(SAID)
    found = {query: await alice.finds(query) for query in FINDS}
    assert found == {query: [thread_id] for query in FINDS}
    found = {query: await alice.finds(query) for query in MISSES}
    assert found == {query: [] for query in MISSES}


CHINESE = "今天天气很好，我们去公园吧。iPhone手机 🎉"
UNSPACED = {
    CHINESE: (["天气", "今", "吧", "气很", "今天天气", "公园", "手机", "iphone", "iPhone手机", "🎉", "天气 公园"],
              ["气天", "天很", "今天气", "园公", "公园手机x", "手iphone", "天气 -公园"]),
    "東京タワーへ行きました。ﾃﾚﾋﾞも見た": (["タワー", "東京", "行き", "テレビ", "ﾃﾚﾋﾞ", "京タ", "た"],
                                         ["ワタ", "京東", "テレヒ"]),
    "안녕하세요, 한국어를 공부해요": (["한국어", "한국", "국어", "공부", "안녕", "안녕하세요"], ["어국", "한어"]),
    "ภาษาไทยสวยมาก": (["ไทย", "ภาษา", "สวย"], ["ยไท"]),
}  # fmt: skip


@pytest.mark.parametrize("said", UNSPACED)
async def test_scripts_without_blanks_are_found_by_any_part(alice: Person, said: str) -> None:
    thread_id = await alice.thread(said)
    finds, misses = UNSPACED[said]
    assert {query: await alice.finds(query) for query in finds} == {query: [thread_id] for query in finds}
    assert {query: await alice.finds(query) for query in misses} == {query: [] for query in misses}


async def test_a_page_says_where_what_was_said_by_whom(alice: Person) -> None:
    thread_id = await alice.thread("The <b>heron</b>\nis a bird", title="Birds")
    question = UserMessageItem(
        id="msg_question", thread_id=thread_id, created_at=datetime.now(), inference_options=InferenceOptions(),
        content=[UserMessageTextContent(text="😀 What is a HERON?")], attachments=[],
    )  # fmt: skip
    call = ClientToolCallItem(
        id="tc_1", thread_id=thread_id, created_at=datetime.now(), status="pending", call_id="c", name="find heron",
        arguments={},
    )  # fmt: skip
    for item in (question, call):
        await alice.say(thread_id, item)
    page = await alice.page("heron")
    (found,) = page["data"]
    assert (page["has_more"], "after" in page) == (False, False)
    assert (found["thread"]["id"], found["thread"]["title"], found["title_matches"]) == (thread_id, "Birds", [])
    assert found["item_count"] == 3
    shown = [(item["item_id"], item["speaker"], item["snippet"], item["matches"]) for item in found["items"]]
    assert shown[:2] == [
        ("tc_1", "tool", "find heron", [{"start": 5, "length": 5}]),
        ("msg_question", "user", "😀 What is a HERON?", [{"start": 12, "length": 5}]),
    ]
    # What looks like markup is text, and stays that.
    assert shown[2][1:] == ("assistant", "The <b>heron</b> is a bird", [{"start": 7, "length": 5}])
    assert found["items"][2]["created_at"] == "2026-01-01T12:00:01Z"


async def test_titles_come_first_and_then_what_was_said_last(alice: Person) -> None:
    old = await alice.thread("a lake", at=1)
    titled = await alice.thread("nothing", title="At the Lake", at=2)
    newest = await alice.thread("a lake", at=30)
    both = await alice.thread("a lake, later", title="Lakes", at=40)
    middle = await alice.thread("a lake", "other words", at=20)
    assert await alice.finds("lake") == [both, titled, newest, middle, old]
    found = {found["thread"]["id"]: found for found in (await alice.page("lake"))["data"]}
    assert [found[thread]["title_matches"] for thread in (both, titled, old)] == [
        [{"start": 0, "length": 4}], [{"start": 7, "length": 4}], [],
    ]  # fmt: skip
    assert [found[titled]["items"], found[titled]["item_count"]] == [[], 0]
    await alice.say(old, "the lake again")
    assert await alice.finds("lake") == [both, titled, old, newest, middle]


async def test_pages_hold_together_whatever_is_said_meanwhile(alice: Person) -> None:
    threads = [await alice.thread("oak", title="oak" if at % 5 == 0 else None, at=at) for at in range(23)]
    expected = await alice.finds("oak")
    assert len(expected) == 20
    seen, after = [], None
    while True:
        page = await alice.page("oak", limit=4, **({"after": after} if after else {}))
        seen += [found["thread"]["id"] for found in page["data"]]
        # Each time one that is still to come gets a newer match, and there is a thread more.
        await alice.say(threads[3], "oak")
        await alice.say(await alice.thread(), "oak")
        if not page["has_more"]:
            break
        after = page["after"]
    assert len(seen) == len(set(seen)) == 23
    assert (seen[:20], set(seen)) == (expected, set(threads))


async def test_a_thread_shows_the_newest_three_of_its_matches(alice: Person) -> None:
    thread_id = await alice.thread(*[f"elm number {number}" for number in range(7)])
    (found,) = (await alice.page("elm"))["data"]
    assert (found["thread"]["id"], found["item_count"]) == (thread_id, 7)
    assert [item["snippet"] for item in found["items"]] == ["elm number 6", "elm number 5", "elm number 4"]


async def test_what_was_changed_deleted_or_hidden_is_not_found(alice: Person) -> None:
    thread_id = await alice.thread("birch", "birch")
    hidden = HiddenContextItem(id="hid", thread_id=thread_id, created_at=datetime.now(), content="willow")
    await alice.say(thread_id, hidden)
    changed = assistant(thread_id, "birch", datetime.now())
    await alice.say(thread_id, changed)
    assert (await alice.page("birch"))["data"][0]["item_count"] == 3
    await alice.say(thread_id, changed.model_copy(update={"content": [AssistantMessageContent(text="maple")]}))
    assert (await alice.page("birch"))["data"][0]["item_count"] == 2
    assert (await alice.finds("maple"), await alice.finds("willow")) == ([thread_id], [])
    await alice.store.delete_thread_item(thread_id, changed.id, alice.context)
    assert await alice.finds("maple") == []
    await alice.store.rename_thread(thread_id, "poplar", alice.context)
    assert await alice.finds("poplar") == [thread_id]
    await alice.store.delete_thread(thread_id, alice.context)
    assert (await alice.finds("birch"), await alice.finds("poplar")) == ([], [])


async def test_nobody_finds_what_somebody_else_said(alice: Person) -> None:
    bob = Person(alice.system)
    for person in (alice, bob):
        for _ in range(3):
            await person.thread("sequoia secret", title=f"sequoia of {person.name}")
    mine = await alice.page("sequoia", limit=2)
    theirs = await bob.page("sequoia", limit=2)
    assert {found["thread"]["title"] for found in mine["data"]} == {f"sequoia of {alice.name}"}
    # A cursor of the other one is but a place in the order.
    page = await alice.page("sequoia", after=theirs["after"])
    assert all(found["thread"]["title"] == f"sequoia of {alice.name}" for found in page["data"])
    assert await Person(alice.system).finds("sequoia") == []


async def test_two_users_with_the_same_mark_in_the_index_stay_apart(alice: Person) -> None:
    """As if the 32 bits that stand for a user in the index were the same for both."""
    bob = Person(alice.system)
    await bob.thread("baobab", title="baobab")
    lookup = parse("baobab").lookup(bob.name)
    search = Search(alice.store._database)
    for user_id, expected in ((bob.name, 1), (alice.name, 0)):
        values = (user_id, lookup, None, None, None, None, 10, 3, LONGEST_TEXT)
        assert len({row["session_id"] for row in await search._database.fetch(search._statement, *values)}) == expected


BAD: list[tuple[object, str]] = [
    ("", "expected a word to look for"),
    ("   ", "expected a word to look for"),
    ("?!… --- \"\" ()", "expected a word to look for"),
    ("-word", "expected a word to look for"),
    ("word or -other", "expected a word to look for"),
    ("a" * 501, "expected at most 500 characters, got 501"),
    ("a " * 5_000, "expected at most 500 characters, got 10,000"),
    ("a " * 33, "expected at most 32 words, got 33"),
    (None, "expected a string, got null"),
    (5, "expected a string, got a number"),
    (["a"], "expected a string, got a list"),
    ("\ud800", "surrogate"),
    ("\0brew", "holds a NUL character"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "said"), BAD, ids=repr)
async def test_a_query_that_names_no_word_is_refused(alice: Person, query: object, said: str) -> None:
    status, message = await alice.refusal(query)
    assert (status, said in message) == (400, True), message
    assert "$.params.query" in message


async def test_an_operator_on_its_own_is_a_word(alice: Person) -> None:
    thread_id = await alice.thread("this or that", "an orange")
    for query in ("or", "OR", "or or", "this or"):
        assert await alice.finds(query) == [thread_id], query


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


BAD_CURSORS = [
    *("x", "é", "thr_1", "W" * 30_000, "\ud800"),
    *map(cursor, ["[]", "null", "{}", "[" * 3000, '[1,true,2,"x"]1', "[true,true,true,true]", '[1,true,2,"x",3]']),
    *map(cursor, ['[1e999,true,2,"x"]', '[NaN,true,2,"x"]', f'[{10**30},true,2,"x"]', f'[{-(10**17)},true,2,"x"]']),
]


@pytest.mark.parametrize("after", BAD_CURSORS)
async def test_a_cursor_that_no_page_gave_is_refused(alice: Person, after: str) -> None:
    await alice.thread("fig")
    answer = await alice.answer("fig", after=after)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == ("INVALID_REQUEST" if after == "\ud800" else "UNKNOWN_CURSOR")


async def test_a_limit_is_what_a_page_has_at_most(alice: Person) -> None:
    for number in range(103):
        await alice.thread("ivy", at=number)
    sizes = [(limit, len((await alice.page("ivy", limit=limit))["data"])) for limit in (0, 1, 100, 101, 2**31 - 1)]
    assert sizes == [(0, 20), (1, 1), (100, 100), (101, 100), (2**31 - 1, 100)]
    assert (await alice.refusal("ivy", limit=-1))[0] == 400


async def test_it_is_an_rpc_too(alice: Person) -> None:
    thread_id = await alice.thread("yew tree")
    call: Any = alice.system.channel.unary_unary(
        SEARCH_THREADS, response_deserializer=pb.SearchThreadsResponse.FromString
    )
    metadata = metadata_of(alice.name)
    response = await call(pb.SearchThreadsRequest(query="yew").SerializeToString(), metadata=metadata)
    assert [found.thread.id for found in response.data] == [thread_id]
    assert response.data[0].items[0].speaker == pb.SPEAKER_ASSISTANT
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=metadata)
    error = from_rpc_error(caught.value)
    assert (error.code, error.violations[0].path) == ("INVALID_REQUEST", "$.params.query")


NASTY = {
    "all different": " ".join(chr(0x20000 + number) for number in range(40_000)),
    "one word": "x" * 100_000,
    "grows when folded": "\ufdfa" * 100_000,
    "a word a letter": "a " * 50_000,
    "quotes and backslashes": "'\\\"' " * 10_000 + "%_ ':* & | ! <-> \\",
    "accents alone": "\u0301" * 100_000,
    "random": "".join(map(chr, random.Random(7).choices([*range(1, 0xD800), *range(0xE000, 0x110000)], k=50_000))),
    "all that is assigned": "".join(chr(n) for n in range(1, 0xD800)),
}


@pytest.mark.parametrize("case", NASTY)
async def test_whatever_is_said_can_be_stored_and_searched(alice: Person, case: str) -> None:
    began = time.monotonic()
    thread_id = await alice.thread("vine " + NASTY[case], title=NASTY[case][:100_000])
    assert await alice.finds("vine") == [thread_id]
    assert time.monotonic() - began < 5


async def test_only_the_beginning_of_a_text_is_searched(alice: Person) -> None:
    thread_id = await alice.thread("early " + "x " * (LONGEST_TEXT // 2) + "late")
    assert (await alice.finds("early"), await alice.finds("late")) == ([thread_id], [])
    long = "y" * LONGEST_WORD
    other = await alice.thread(long + "abc")
    assert await alice.finds(long + "xyz") == [other]


# What both sides take for a word


async def test_the_database_and_we_take_the_same_for_words(database: Database) -> None:
    """All characters that are assigned, each by itself and beside others."""
    known = [chr(n) for n in range(1, sys.maxunicode + 1) if unicodedata.category(chr(n)) not in {"Cn", "Cs", "Co"}]
    known = [c for c in known if unicodedata.ucd_3_2_0.category(c) != "Cn" or "CJK" not in unicodedata.name(c, "")]
    random.Random(5).shuffle(known)
    texts = [" ".join(known[at : at + 100]) for at in range(0, len(known), 100)]
    texts += ["".join(known[at : at + 100]) for at in range(0, len(known), 100)]
    vectors = "select search_vector('u', text)::text as vector from unnest($1::text[]) with ordinality as t (text, n)"
    rows = await database.fetch(f"{vectors} order by n", texts)
    for text, row in zip(texts, rows, strict=True):
        assert lexemes_of(row["vector"]) == lexemes_in(text), text


async def test_a_database_whose_locale_knows_no_letters_finds_them_all_the_same(postgres_url: str) -> None:
    name = f"test_{uuid4().hex}"
    await execute(
        postgres_url, f"create database {name} template template0 encoding 'UTF8' locale 'C' locale_provider libc"
    )
    try:
        async with open_database(settings_of(with_database(postgres_url, name))) as database:
            row = await database.fetchrow("select lower('Ё') as kept, search_vector('u', $1)::text as vector", SAID)
            assert row is not None
            assert (row["kept"], lexemes_of(row["vector"])) == ("Ё", lexemes_in(SAID))
    finally:
        await execute(postgres_url, f"drop database {name} with (force)")


def lexemes_of(vector: str) -> dict[str, list[int]]:
    """Of a tsvector as text, without the user's mark."""
    pairs = [part.rpartition(":") for part in vector.split(" ") if part]
    return {name[9:-1]: [int(place) for place in places.split(",")] for name, _, places in pairs}


def lexemes_in(text: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    parts = words(text)
    for place, (word, following) in enumerate(zip(parts, [*parts[1:], None], strict=True), 1):
        joins = following is not None and word.is_character and following.is_character
        lexeme = word.text + (following.text if joins and following else "")
        found.setdefault(lexeme, []).append(place)
    return found


# What is shown


@pytest.mark.parametrize(
    ("text", "query", "matched"),
    [
        ("Hello hello HELLO", "hello", ["Hello", "hello", "HELLO"]),
        ("othello hello-world", "hello", ["hello"]),
        ("cold brew, cold, brew", '"cold brew"', ["cold brew", "cold, brew"]),
        ("cold brew", "bre", ["bre"]),
        ("ﬁne café Cafe\u0301 ＷＩＤＥ", "cafe fine wide", ["ﬁne", "café", "Cafe\u0301", "ＷＩＤＥ"]),
        ("ﬁne", "f", ["ﬁ"]),
        ("今天天气好", "天气", ["天气"]),
        ("𝒳 a 😀b", "b", ["b"]),
        ("a b c", "a -b c", ["a", "c"]),
        ("한국어를", "국어", ["국어"]),
        ("nothing here", "elsewhere", []),
        ("x" * 70, "x" * 64, ["x" * 64]),
        ("a.b.c a-b", "a-b", ["a.b", "a-b"]),
    ],
)
def test_matches_are_marked_where_they_are(text: str, query: str, matched: list[str]) -> None:
    found = find_matches(text, parse(query).matches())
    assert [text[match.start : match.start + match.length] for match in found] == matched


def test_a_snippet_shows_the_most_matches_and_cuts_no_word() -> None:
    text = "reed " + "some words that nobody looks for " * 20 + "reed and sedge by the reed " + "and other words " * 30
    shown = snippet(text, parse("reed sedge").matches())
    assert shown.text.startswith("…")
    assert shown.text.endswith("…")
    assert len(shown.text) <= LENGTH + 2
    marked = [shown.text[match.start : match.start + match.length] for match in shown.matches]
    assert marked == ["reed", "sedge", "reed"]
    assert set(shown.text.strip("…").split()) <= set(text.split())


def test_a_snippet_of_anything_has_its_matches_inside() -> None:
    numbers = random.Random(3)
    for _ in range(2000):
        pieces = numbers.choices(["oak ", "oak", "é", "😀", "\n", "今天", "x" * 30, " ", "ﬁ", "\u0301", "<b>"], k=60)
        text = "".join(pieces)
        shown = snippet(text, parse("oak 天 fi").matches())
        end = 0
        for match in shown.matches:
            assert end <= match.start < match.start + match.length <= len(shown.text)
            end = match.start + match.length


async def test_a_wall_lets_nobody_search_who_is_nobody(database: Database) -> None:
    walled = await with_row_security(database)
    store = PostgresStore(walled)
    await store.save_thread(ThreadMetadata(id="thr_1", created_at=datetime.now(), title="larch"), context_of("alice"))
    lookup = parse("larch").lookup("alice")
    hits = "select session_id from search_hits($2::text::tsquery) where $1 <> ''"
    assert len(await walled.fetch(hits, "alice", lookup)) == 1
    assert await walled.fetch(hits, "bob", lookup) == []
    async with database.pool.acquire() as connection, connection.transaction():
        await connection.execute("set local role " + await connection.fetchval(ROLE))
        assert await connection.fetch("select from search_hits($1::text::tsquery)", lookup) == []


ROLE = "select 'chatkit_grpc_user_' || oid from pg_database where datname = current_database()"


async def test_searches_at_once_with_what_is_said_at_once(alice: Person) -> None:
    threads = [await alice.thread("hazel", at=number) for number in range(5)]

    async def talk(thread_id: str) -> None:
        for number in range(20):
            await alice.say(thread_id, f"hazel {number}")

    async def look() -> None:
        for _ in range(20):
            assert set(await alice.finds("hazel")) == set(threads)

    await asyncio.gather(*map(talk, threads), look(), look())
    assert [found["item_count"] for found in (await alice.page("hazel"))["data"]] == [21] * 5
