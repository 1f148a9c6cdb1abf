"""Threads, items, attachments and feedback in PostgreSQL, as the SDK wants them stored.

Each method is one statement, and a second one says why a page is empty. Each statement names its user: what belongs to
another doesn't exist.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import asyncpg
from chatkit.store import NotFoundError as SDKNotFoundError
from chatkit.store import Store, StoreItemType
from chatkit.types import Attachment, FeedbackKind, Page, ThreadItem, ThreadMetadata, WidgetItem
from chatkit.widgets import DynamicWidgetRoot
from chatkit_grpc.errors import DatabaseError, NotFoundError, ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from pydantic import BaseModel, TypeAdapter
from pydantic import ValidationError as PydanticValidationError
from pydantic_core import PydanticSerializationError, to_json

from server.context import RequestContext
from server.database import Database
from server.ids import new_id
from server.item_text import sender_of, text_of
from server.text_repair import whole
from server.times import to_local, to_utc

T = TypeVar("T")

Columns: TypeAlias = Mapping[str, Any]
"""What a thread says, by the names of the columns."""

MAX_PAGE_SIZE = 10_000

# A thread's row, as far as the SDK knows it. An update leaves alone when it was created and how far it has counted.
SAVE_THREAD = """
insert into chat_sessions
    (user_id, session_id, title, status, status_reason, allowed_image_domains, metadata, created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (user_id, session_id) do update set
    title = excluded.title,
    status = excluded.status,
    status_reason = excluded.status_reason,
    allowed_image_domains = excluded.allowed_image_domains,
    metadata = excluded.metadata,
    updated_at = now()
"""

# Only what the caller changed, since others write to the thread meanwhile. A title that isn't the one the caller knew
# was given by the user during the run, and stays. A thread that was deleted meanwhile isn't made again.
UPDATE_THREAD = """
update chat_sessions set
    title = case when 'title' = any ($3::text[]) and title is not distinct from $4 then $5 else title end,
    status = case when $3 && '{status, status_reason}' then $6 else status end,
    status_reason = case when $3 && '{status, status_reason}' then $7 else status_reason end,
    allowed_image_domains = case when 'allowed_image_domains' = any ($3) then $8 else allowed_image_domains end,
    metadata = case when 'metadata' = any ($3) then $9 else metadata end,
    updated_at = now()
where user_id = $1 and session_id = $2
returning session_id
"""

RENAME_THREAD = """
update chat_sessions set title = $3, updated_at = now()
where user_id = $1 and session_id = $2
returning session_id, title, status, status_reason, allowed_image_domains, metadata, created_at
"""

LOAD_THREAD = """
select session_id, title, status, status_reason, allowed_image_domains, metadata, created_at
from chat_sessions
where user_id = $1 and session_id = $2
"""

# A page after a thread. Without a cursor it starts before the first; an unknown cursor gives no rows at all.
LOAD_THREADS_ASC = """
select session_id, title, status, status_reason, allowed_image_domains, metadata, created_at
from chat_sessions
where user_id = $1 and (created_at, session_id) > (
    select created_at, session_id from chat_sessions where user_id = $1 and session_id = $2
    union all
    select timestamptz '-infinity', '' where $2::text is null
)
order by created_at, session_id
limit $3
"""

LOAD_THREADS_DESC = """
select session_id, title, status, status_reason, allowed_image_domains, metadata, created_at
from chat_sessions
where user_id = $1 and (created_at, session_id) < (
    select created_at, session_id from chat_sessions where user_id = $1 and session_id = $2
    union all
    select timestamptz 'infinity', '' where $2::text is null
)
order by created_at desc, session_id desc
limit $3
"""

# The items go with it, and with them their feedback. Attachments stay: their files have to be deleted elsewhere.
DELETE_THREAD = """
with deleted as (
    delete from chat_sessions where user_id = $1 and session_id = $2 returning session_id
), unlinked as (
    update attachments set session_id = null from deleted
    where attachments.user_id = $1 and attachments.session_id = deleted.session_id
)
select session_id from deleted
"""

# An item gets the position that its thread's row gives out: that row is locked meanwhile, so no two get the same.
# An item that is there already keeps its place. Without a thread no row is written and none comes back.
SAVE_ITEM = """
with thread as (
    update chat_sessions set next_position = next_position + 1, updated_at = now()
    where user_id = $1 and session_id = $2
    returning next_position - 1 as position
)
insert into chat_messages
    (user_id, session_id, message_id, position, item_type, sender_type, content, "timestamp", item)
select $1, $2, $3, thread.position, $4, $5, $6, $7, $8 from thread
on conflict (user_id, session_id, message_id) do update set
    item_type = excluded.item_type,
    sender_type = excluded.sender_type,
    content = excluded.content,
    "timestamp" = excluded."timestamp",
    item = excluded.item
returning position
"""

LOAD_ITEM = """
select message_id, item from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
"""

DELETE_ITEM = """
delete from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
"""

# A page after an item, as for threads. The cursor may be hidden where the page shows no hidden items.
LOAD_ITEMS_ASC = """
select message_id, item from chat_messages
where user_id = $1 and session_id = $2 and position > (
    select position from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
    union all
    select 0 where $3::text is null
)
order by position
limit $4
"""

LOAD_ITEMS_DESC = """
select message_id, item from chat_messages
where user_id = $1 and session_id = $2 and position < (
    select position from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
    union all
    select 9223372036854775807 where $3::text is null
)
order by position desc
limit $4
"""

LOAD_VISIBLE_ITEMS_ASC = """
select message_id, item from chat_messages
where user_id = $1 and session_id = $2 and not hidden and position > (
    select position from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
    union all
    select 0 where $3::text is null
)
order by position
limit $4
"""

LOAD_VISIBLE_ITEMS_DESC = """
select message_id, item from chat_messages
where user_id = $1 and session_id = $2 and not hidden and position < (
    select position from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
    union all
    select 9223372036854775807 where $3::text is null
)
order by position desc
limit $4
"""

# Which of some items a client can't see: the first that isn't there.
MISSING_ITEM = """
select
    exists (select from chat_sessions where user_id = $1 and session_id = $2) as thread,
    (
        select min(wanted.message_id) from unnest($3::text[]) as wanted (message_id)
        where wanted.message_id not in (
            select message_id from chat_messages
            where user_id = $1 and session_id = $2 and not hidden and message_id = any ($3::text[])
        )
    ) as missing
"""

# Why a page is empty.
THREAD_AND_ITEM_EXIST = """
select
    exists (select from chat_sessions where user_id = $1 and session_id = $2) as thread,
    exists (select from chat_messages where user_id = $1 and session_id = $2 and message_id = $3) as item
"""

SAVE_ATTACHMENT = """
insert into attachments (user_id, attachment_id, session_id, name, mime_type, attachment)
values ($1, $2, $3, $4, $5, $6)
on conflict (user_id, attachment_id) do update set
    session_id = excluded.session_id,
    name = excluded.name,
    mime_type = excluded.mime_type,
    attachment = excluded.attachment
"""

LOAD_ATTACHMENT = """
select session_id, attachment from attachments where user_id = $1 and attachment_id = $2
"""

DELETE_ATTACHMENT = """
delete from attachments where user_id = $1 and attachment_id = $2 returning attachment_id
"""

# All or nothing: an item that isn't there comes back, and nothing is written. The items are locked in one order, and
# can't be deleted meanwhile.
SAVE_FEEDBACK = """
with wanted as (
    select distinct unnest($3::text[]) collate "C" as message_id
), found as (
    select message_id from chat_messages
    where user_id = $1 and session_id = $2 and not hidden and message_id = any ($3::text[])
    order by message_id
    for key share
), saved as (
    insert into feedback (user_id, session_id, message_id, kind)
    select $1, $2, message_id, $4 from found
    where (select count(*) from found) = (select count(*) from wanted)
    on conflict (user_id, session_id, message_id) do update set kind = excluded.kind, updated_at = now()
)
select
    exists (select from chat_sessions where user_id = $1 and session_id = $2) as thread,
    (select min(message_id) from wanted where message_id not in (select message_id from found)) as missing
"""

_THREADS_PAGE = {"asc": LOAD_THREADS_ASC, "desc": LOAD_THREADS_DESC}
_ITEMS_PAGE = {"asc": LOAD_ITEMS_ASC, "desc": LOAD_ITEMS_DESC}
_VISIBLE_ITEMS_PAGE = {"asc": LOAD_VISIBLE_ITEMS_ASC, "desc": LOAD_VISIBLE_ITEMS_DESC}

_ITEM: TypeAdapter[ThreadItem] = TypeAdapter(ThreadItem)
_ATTACHMENT: TypeAdapter[Attachment] = TypeAdapter(Attachment)

_SEEN_THREADS = "_chatkit_grpc.threads"
"""Where a context keeps what its request has seen of threads."""

_ROWS_AT_A_STRETCH = 200
"""How many rows are parsed before others get their turn."""

_QUOTED_LENGTH = 200
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class RecordNotFoundError(NotFoundError, SDKNotFoundError):
    """What was asked for isn't there, for this project and for those who know the SDK's error."""

    @classmethod
    def thread(cls, thread_id: str) -> RecordNotFoundError:
        """There is no such thread, or not for this user."""
        return cls(
            "There is no such thread.",
            reason=reasons.ERROR_REASON_THREAD_NOT_FOUND,
            metadata={"thread_id": _quoted(thread_id)},
        )

    @classmethod
    def item(cls, thread_id: str, item_id: str) -> RecordNotFoundError:
        """There is no such item on the thread, or no such thread."""
        metadata = {"thread_id": _quoted(thread_id), "item_id": _quoted(item_id)}
        return cls("There is no such item.", reason=reasons.ERROR_REASON_ITEM_NOT_FOUND, metadata=metadata)

    @classmethod
    def attachment(cls, attachment_id: str) -> RecordNotFoundError:
        """There is no such attachment, or not for this user."""
        metadata = {"attachment_id": _quoted(attachment_id)}
        return cls("There is no such attachment.", reason=reasons.ERROR_REASON_ATTACHMENT_NOT_FOUND, metadata=metadata)


class PostgresStore(Store[RequestContext]):
    """The SDK's store, on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def generate_thread_id(self, context: RequestContext) -> str:
        """An id for a new thread."""
        return new_id("thread")

    def generate_item_id(
        self,
        item_type: StoreItemType,
        thread: ThreadMetadata,
        context: RequestContext,
    ) -> str:
        """An id for a new item."""
        return new_id(item_type)

    async def load_thread(self, thread_id: str, context: RequestContext) -> ThreadMetadata:
        """A thread without its items."""
        row = await self._database.fetchrow(LOAD_THREAD, context["user_id"], thread_id)
        return _loaded_thread(row, thread_id, context)

    async def save_thread(self, thread: ThreadMetadata, context: RequestContext) -> None:
        """Write a new thread, or what has changed in one that this request loaded or saved before.

        Then it raises RecordNotFoundError if the thread is no longer there.
        """
        columns, seen = _columns_of(thread), _seen(thread.id, context)
        if seen:
            await self._update_thread(thread.id, columns, seen, context)
        else:
            created_at = to_utc(thread.created_at)
            await self._database.fetch(SAVE_THREAD, context["user_id"], thread.id, *columns.values(), created_at)
        seen[:] = [columns]

    async def rename_thread(self, thread_id: str, title: str, context: RequestContext) -> ThreadMetadata:
        """Give a thread another title, whatever else is written to it at the same time."""
        row = await self._database.fetchrow(RENAME_THREAD, context["user_id"], thread_id, title)
        return _loaded_thread(row, thread_id, context)

    async def load_threads(
        self, limit: int, after: str | None, order: str, context: RequestContext
    ) -> Page[ThreadMetadata]:
        """A page of the user's threads, by the time of their creation."""
        user_id, size = context["user_id"], _page_size(limit)
        rows = await self._database.fetch(_in_order(_THREADS_PAGE, order), user_id, after, size + 1)
        if not rows and after is not None and not await self._database.fetchrow(LOAD_THREAD, user_id, after):
            raise _unknown_cursor(after)
        threads = await _each(rows[:size], _thread_of)
        for thread in threads:
            _remember(thread, context)
        has_more = len(rows) > size
        return Page(data=threads, has_more=has_more, after=threads[-1].id if has_more else None)

    async def delete_thread(self, thread_id: str, context: RequestContext) -> None:
        """Delete a thread with its items and their feedback. Its attachments stay, no longer linked to a thread."""
        if not await self._database.fetch(DELETE_THREAD, context["user_id"], thread_id):
            raise RecordNotFoundError.thread(thread_id)

    async def load_thread_items(
        self, thread_id: str, after: str | None, limit: int, order: str, context: RequestContext
    ) -> Page[ThreadItem]:
        """A page of a thread's items, hidden ones included, in the order they were added."""
        return await self._load_items(_in_order(_ITEMS_PAGE, order), thread_id, after, limit, context)

    async def load_visible_items(
        self, thread_id: str, after: str | None, limit: int, order: str, context: RequestContext
    ) -> Page[ThreadItem]:
        """A page of the items that clients may see. `after` may be hidden all the same."""
        return await self._load_items(_in_order(_VISIBLE_ITEMS_PAGE, order), thread_id, after, limit, context)

    async def add_thread_item(self, thread_id: str, item: ThreadItem, context: RequestContext) -> None:
        """Add an item at the end of its thread. One that is there already is replaced where it is."""
        row = await self._database.fetchrow(
            SAVE_ITEM,
            context["user_id"],
            thread_id,
            item.id,
            item.type,
            sender_of(item),
            text_of(item),
            to_utc(item.created_at),
            _json_of_item(item),
        )
        if row is None:
            raise RecordNotFoundError.thread(thread_id)

    async def save_item(self, thread_id: str, item: ThreadItem, context: RequestContext) -> None:
        """Replace an item where it is. One that isn't there yet is added."""
        await self.add_thread_item(thread_id, item, context)

    async def load_item(self, thread_id: str, item_id: str, context: RequestContext) -> ThreadItem:
        """An item of a thread, be it hidden."""
        row = await self._database.fetchrow(LOAD_ITEM, context["user_id"], thread_id, item_id)
        if row is None:
            raise RecordNotFoundError.item(thread_id, item_id)
        return _item_of(row)

    async def delete_thread_item(self, thread_id: str, item_id: str, context: RequestContext) -> None:
        """Delete an item. It needn't be there: the SDK cleans up items that may never have been stored."""
        await self._database.fetch(DELETE_ITEM, context["user_id"], thread_id, item_id)

    async def save_attachment(self, attachment: Attachment, context: RequestContext) -> None:
        """Write an attachment, its integration-only metadata included."""
        await self._database.fetch(
            SAVE_ATTACHMENT,
            context["user_id"],
            attachment.id,
            attachment.thread_id,
            attachment.name,
            attachment.mime_type,
            _json_of(attachment),
        )

    async def load_attachment(self, attachment_id: str, context: RequestContext) -> Attachment:
        """An attachment of the user."""
        row = await self._database.fetchrow(LOAD_ATTACHMENT, context["user_id"], attachment_id)
        if row is None:
            raise RecordNotFoundError.attachment(attachment_id)
        attachment: Attachment = _parsed(_ATTACHMENT, row["attachment"], {"attachment_id": attachment_id})
        return attachment.model_copy(update={"thread_id": row["session_id"]})

    async def delete_attachment(self, attachment_id: str, context: RequestContext) -> None:
        """Delete what is known of an attachment. The file is the attachment store's."""
        if not await self._database.fetch(DELETE_ATTACHMENT, context["user_id"], attachment_id):
            raise RecordNotFoundError.attachment(attachment_id)

    async def save_feedback(
        self, thread_id: str, item_ids: list[str], kind: FeedbackKind, context: RequestContext
    ) -> None:
        """Write what the user thinks of some items, or nothing where one of them isn't there for him to see."""
        row = await self._database.fetchrow(SAVE_FEEDBACK, context["user_id"], thread_id, item_ids, kind)
        _check_nothing_missing(row, thread_id)

    async def require_items(self, thread_id: str, item_ids: list[str], context: RequestContext) -> None:
        """Raise unless the thread has all these items, for the user to see."""
        row = await self._database.fetchrow(MISSING_ITEM, context["user_id"], thread_id, item_ids)
        _check_nothing_missing(row, thread_id)

    async def _update_thread(
        self, thread_id: str, columns: Columns, seen: Sequence[Columns], context: RequestContext
    ) -> None:
        # Other than all that the request has seen: what it saves may be older than what it loaded last.
        changed = [name for name, value in columns.items() if all(value != version[name] for version in seen)]
        known_title = seen[-1]["title"]
        values = (context["user_id"], thread_id, changed, known_title, *columns.values())
        if not await self._database.fetch(UPDATE_THREAD, *values):
            raise RecordNotFoundError.thread(thread_id)

    async def _load_items(
        self, statement: str, thread_id: str, after: str | None, limit: int, context: RequestContext
    ) -> Page[ThreadItem]:
        size = _page_size(limit)
        rows = await self._database.fetch(statement, context["user_id"], thread_id, after, size + 1)
        if not rows:
            await self._check_items_page(thread_id, after, context)
        items = await _each(rows[:size], _item_of)
        has_more = len(rows) > size
        return Page(data=items, has_more=has_more, after=items[-1].id if has_more else None)

    async def _check_items_page(self, thread_id: str, after: str | None, context: RequestContext) -> None:
        """Raise what is wrong if a page is empty because of what it was asked for."""
        row = await self._database.fetchrow(THREAD_AND_ITEM_EXIST, context["user_id"], thread_id, after)
        if row is None or not row["thread"]:
            raise RecordNotFoundError.thread(thread_id)
        if after is not None and not row["item"]:
            raise _unknown_cursor(after)


def _quoted(text: str) -> str:
    """A caller's text as an error may repeat it."""
    return str(whole(text[:_QUOTED_LENGTH]))


def _check_nothing_missing(row: asyncpg.Record | None, thread_id: str) -> None:
    if row is None or not row["thread"]:
        raise RecordNotFoundError.thread(thread_id)
    if row["missing"] is not None:
        raise RecordNotFoundError.item(thread_id, row["missing"])


def _page_size(limit: int) -> int:
    return max(1, min(limit, MAX_PAGE_SIZE))


def _in_order(statements: Mapping[str, str], order: str) -> str:
    if order not in statements:
        raise ValidationError(f"The order is asc or desc, not {order!r}.")
    return statements[order]


def _unknown_cursor(after: str) -> ValidationError:
    return ValidationError(
        "The page can't go on from there: the list has no such element.",
        reason=reasons.ERROR_REASON_UNKNOWN_CURSOR,
        metadata={"after": _quoted(after)},
    )


async def _each(rows: Sequence[asyncpg.Record], parse: Callable[[asyncpg.Record], T]) -> list[T]:
    """The rows, parsed without keeping others waiting."""
    parsed: list[T] = []
    for at in range(0, len(rows), _ROWS_AT_A_STRETCH):
        if at:
            await asyncio.sleep(0)
        parsed += map(parse, rows[at : at + _ROWS_AT_A_STRETCH])
    return parsed


def _seen(thread_id: str, context: RequestContext) -> list[Columns]:
    """The versions of a thread that this request has loaded since it last saved it, that one first."""
    threads: dict[tuple[str, str], list[Columns]] = context.setdefault(_SEEN_THREADS, {})
    return threads.setdefault((context["user_id"], thread_id), [])


def _remember(thread: ThreadMetadata, context: RequestContext) -> None:
    columns, seen = _columns_of(thread), _seen(thread.id, context)
    if columns in seen:
        seen.remove(columns)
    seen.append(columns)


def _loaded_thread(row: asyncpg.Record | None, thread_id: str, context: RequestContext) -> ThreadMetadata:
    if row is None:
        raise RecordNotFoundError.thread(thread_id)
    thread = _thread_of(row)
    _remember(thread, context)
    return thread


def _columns_of(thread: ThreadMetadata) -> Columns:
    return {
        "title": thread.title,
        "status": thread.status.type,
        "status_reason": getattr(thread.status, "reason", None),
        "allowed_image_domains": None if thread.allowed_image_domains is None else list(thread.allowed_image_domains),
        "metadata": _jsonb(thread.metadata),
    }


def _thread_of(row: asyncpg.Record) -> ThreadMetadata:
    status = {"type": row["status"]} | ({"reason": row["status_reason"]} if row["status"] != "active" else {})
    return ThreadMetadata.model_validate(
        {
            "id": row["session_id"],
            "title": row["title"],
            "status": status,
            "allowed_image_domains": row["allowed_image_domains"],
            "metadata": json.loads(row["metadata"]),
            "created_at": to_local(row["created_at"]),
        }
    )


def _jsonb(value: Mapping[str, Any]) -> str:
    """JSON that jsonb accepts: it has no NUL, and no numbers that aren't any."""
    try:
        text = to_json(value, inf_nan_mode="null").decode()
    except PydanticSerializationError:
        text = _json_of_whole(value)
    return _ESCAPED_NUL.sub(r"\1\\ufffd", text)


def _json_of_item(item: ThreadItem) -> str:
    in_utc = item.model_copy(update={"created_at": to_utc(item.created_at)})
    return _json_of(in_utc)


def _json_of(model: BaseModel) -> str:
    # Members that are None are written too, since some items need them. A warning would quote what is said.
    try:
        return model.model_dump_json(by_alias=True, warnings=False)
    except PydanticSerializationError:
        return _json_of_whole(model.model_dump(by_alias=True, warnings=False))


def _json_of_whole(value: Any) -> str:
    """JSON of what can't be written as it is: a model may split an emoji, and each half is no character."""
    return to_json(whole(value), inf_nan_mode="null").decode()


def _item_of(row: asyncpg.Record) -> ThreadItem:
    item: ThreadItem = _parsed(_ITEM, row["item"], {"item_id": row["message_id"]})
    item.created_at = to_local(item.created_at)
    if isinstance(item, WidgetItem):
        _restore_widget(item, json.loads(row["item"])["widget"])
    return item


def _restore_widget(item: WidgetItem, stored: dict[str, Any]) -> None:
    """Read a widget made from a template as such.

    The SDK's types take it for one of the strict classes where it looks like one, and drop the members that these
    don't know. Then what is read isn't what was stored.
    """
    if item.widget.model_dump(mode="json") != stored:
        item.widget = DynamicWidgetRoot.model_validate(stored)


def _parsed(adapter: TypeAdapter[T], text: str, metadata: Mapping[str, str]) -> T:
    try:
        return adapter.validate_json(text)
    except PydanticValidationError:
        # A newer server may have stored a kind that this one doesn't know.
        failure = DatabaseError("What is stored can't be read by this version of the server.", metadata=metadata)
    # Not inside the except block: pydantic's error quotes what is said.
    raise failure
