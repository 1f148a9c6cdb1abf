"""Threads, items, attachments and feedback in PostgreSQL, as the SDK wants them stored.

Nearly each method is one statement; a second one says why a page is empty. Each statement names its user: what belongs
to another doesn't exist. What a run writes to its thread is written under its lease, or not at all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import asyncpg
from chatkit.store import AttachmentStore, Store, StoreItemType
from chatkit.store import NotFoundError as SDKNotFoundError
from chatkit.types import (
    Attachment,
    FeedbackKind,
    Page,
    SDKHiddenContextItem,
    ThreadItem,
    ThreadMetadata,
    UserMessageItem,
)
from chatkit_grpc.errors import DatabaseError, NotFoundError, ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server import statements
from server.agent_record import Remembered, record_of
from server.context import RequestContext
from server.database import Database
from server.ids import new_id
from server.item_text import sender_of, text_of
from server.lease import Lease, LeaseLostError, lease_of
from server.records import Columns, attachment_of, columns_of, item_of, json_of, json_of_item, jsonb_of, thread_of
from server.text_repair import whole
from server.times import to_utc

T = TypeVar("T")

MAX_PAGE_SIZE = 10_000

_THREADS_PAGE = {"asc": statements.LOAD_THREADS_ASC, "desc": statements.LOAD_THREADS_DESC}
_ITEMS_PAGE = {"asc": statements.LOAD_ITEMS_ASC, "desc": statements.LOAD_ITEMS_DESC}
_VISIBLE_ITEMS_PAGE = {"asc": statements.LOAD_VISIBLE_ITEMS_ASC, "desc": statements.LOAD_VISIBLE_ITEMS_DESC}

_SEEN_THREADS = "_chatkit_grpc.threads"
"""Where a context keeps what its request has seen of threads."""

_NEW_THREAD_ID = "_chatkit_grpc.new_thread_id"
"""Where a context keeps the id of the thread that its request makes."""

_ROWS_AT_A_STRETCH = 200
"""How many rows are parsed before others get their turn."""

_QUOTED_LENGTH = 200
_UNIQUE_VIOLATION = "23505"


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
    """The SDK's store, on PostgreSQL.

    attachments: what keeps the bytes of attachments, for a ChatKitServer that takes some. None in a store of its own.
    """

    def __init__(self, database: Database, attachments: AttachmentStore[RequestContext] | None = None) -> None:
        self._database = database
        self.attachments = attachments

    @property
    def database(self) -> Database:
        """What it works on, behind the second wall where there is one."""
        return self._database

    def generate_thread_id(self, context: RequestContext) -> str:
        """An id for a new thread: for the first of a request that makes one, the id that its run knows it by."""
        prepared: str | None = context.pop(_NEW_THREAD_ID, None)
        return prepared or new_id("thread")

    def prepare_thread(self, context: RequestContext) -> str:
        """The id of the thread that a request will make."""
        context[_NEW_THREAD_ID] = thread_id = new_id("thread")
        return thread_id

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
        row = await self._database.fetchrow(statements.LOAD_THREAD, context["user_id"], thread_id)
        return _loaded_thread(row, thread_id, context)

    async def save_thread(self, thread: ThreadMetadata, context: RequestContext) -> None:
        """Write a new thread, or what has changed in one that this request loaded or saved before.

        Then it raises RecordNotFoundError if the thread is no longer there.
        """
        columns, seen = columns_of(thread), _seen(thread.id, context)
        if seen:
            # The user may have named it meanwhile: then that is what whoever saves it goes on with, and tells.
            thread.title = await self._update_thread(thread.id, columns, seen, context)
        else:
            lease = lease_of(context, thread.id)
            values = (*columns.values(), to_utc(thread.created_at), lease and lease.epoch)
            row = await self._database.fetchrow(statements.SAVE_THREAD, context["user_id"], thread.id, *values)
            _check_written(row, thread.id, lease)
        seen[:] = [columns_of(thread)]

    async def rename_thread(self, thread_id: str, title: str, context: RequestContext) -> ThreadMetadata:
        """Give a thread another title, whatever else is written to it at the same time."""
        row = await self._database.fetchrow(statements.RENAME_THREAD, context["user_id"], thread_id, title)
        return _loaded_thread(row, thread_id, context)

    async def load_threads(
        self, limit: int, after: str | None, order: str, context: RequestContext
    ) -> Page[ThreadMetadata]:
        """A page of the user's threads, by the time of their creation."""
        user_id, size = context["user_id"], _page_size(limit)
        rows = await self._database.fetch(_in_order(_THREADS_PAGE, order), user_id, after, size + 1)
        if not rows and after is not None and not await self._database.fetchrow(statements.LOAD_THREAD, user_id, after):
            raise _unknown_cursor(after)
        threads = await _each(rows[:size], thread_of)
        for thread in threads:
            _remember(thread, context)
        has_more = len(rows) > size
        return Page(data=threads, has_more=has_more, after=threads[-1].id if has_more else None)

    async def delete_thread(self, thread_id: str, context: RequestContext) -> None:
        """Delete a thread with its items and their feedback. Its attachments are swept soon after."""
        if not await self._database.fetch(statements.DELETE_THREAD, context["user_id"], thread_id, None):
            raise RecordNotFoundError.thread(thread_id)
        await self.forget_runs(thread_id, context)

    async def forget_runs(self, thread_id: str, context: RequestContext) -> None:
        """Delete what is left of the runs of a thread that is gone."""
        await self._database.fetch(statements.FORGET_RUNS, context["user_id"], thread_id)

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
        lease = lease_of(context, thread_id)
        record = record_of(context)
        done = record.done() if record is not None else []
        values = (context["user_id"], thread_id, *item_values(item), lease and lease.run_id, lease and lease.epoch)
        row = await self._database.fetchrow(statements.SAVE_ITEM, *values, jsonb_of(done) if done else None)
        _check_written(row, thread_id, lease)
        if record is not None:
            record.were_stored(done)
        if lease is not None and not isinstance(item, SDKHiddenContextItem):
            lease.stored.add(item.id)

    async def save_item(self, thread_id: str, item: ThreadItem, context: RequestContext) -> None:
        """Replace an item where it is. One that isn't there yet is added."""
        await self.add_thread_item(thread_id, item, context)

    async def load_history(
        self, thread_id: str, after: str | None, limit: int, context: RequestContext
    ) -> Page[Remembered]:
        """A page of a thread's items, newest first and hidden ones included, each with what the agent did before it."""
        rows = await self._load_rows(statements.LOAD_HISTORY, thread_id, after, limit, context)
        items = await _each(rows[:limit], lambda row: Remembered(item_of(row), json.loads(row["agent_record"] or "[]")))
        has_more = len(rows) > limit
        return Page(data=items, has_more=has_more, after=items[-1].item.id if has_more else None)

    async def load_item(self, thread_id: str, item_id: str, context: RequestContext) -> ThreadItem:
        """An item of a thread, be it hidden."""
        row = await self._database.fetchrow(statements.LOAD_ITEM, context["user_id"], thread_id, item_id)
        if row is None:
            raise RecordNotFoundError.item(thread_id, item_id)
        return item_of(row)

    async def load_items_of_run(self, thread_id: str, run_id: str, context: RequestContext) -> list[ThreadItem]:
        """The items that a run left on its thread, for the user to see."""
        rows = await self._database.fetch(statements.LOAD_ITEMS_OF_RUN, context["user_id"], thread_id, run_id)
        return await _each(rows, item_of)

    async def delete_thread_item(self, thread_id: str, item_id: str, context: RequestContext) -> None:
        """Delete an item. It needn't be there: the SDK cleans up items that may never have been stored."""
        lease = lease_of(context, thread_id)
        values = (context["user_id"], thread_id, item_id, lease and lease.epoch)
        row = await self._database.fetchrow(statements.DELETE_ITEM, *values)
        if lease is not None:
            _check_written(row, thread_id, lease)

    async def append_item(self, thread_id: str, item: ThreadItem, change: bytes, context: RequestContext) -> bool:
        """Add an item unless the thread has one with its id, and tell those who watch. Whether it was added."""
        brought = [attachment.id for attachment in item.attachments] if isinstance(item, UserMessageItem) else []
        values = (context["user_id"], thread_id, *item_values(item), change, brought)
        try:
            return bool(await self._database.fetch(statements.APPEND_ITEM, *values))
        except DatabaseError as error:
            if error.metadata.get("sqlstate") == _UNIQUE_VIOLATION:
                return False  # it came at the same time from elsewhere
            raise

    async def record_change(self, thread_id: str, change: bytes, context: RequestContext) -> None:
        """Tell those who watch a thread what was changed on it."""
        lease = lease_of(context, thread_id)
        await self._database.fetch(
            statements.RECORD_CHANGE, context["user_id"], thread_id, change, lease and lease.epoch
        )

    async def retry_after_item(self, thread_id: str, item_id: str, context: RequestContext) -> tuple[str, list[str]]:
        """Delete what came after a user's message: the item, the next one after it, or the last one before it.

        Returns that message's id, and the ids of the items that are gone. Raises RecordNotFoundError where there is no
        such item or no user's message, and LeaseLostError outside of a run.
        """
        lease = lease_of(context, thread_id)
        values = (context["user_id"], thread_id, item_id, lease and lease.epoch)
        row = await self._database.fetchrow(statements.RETRY_AFTER_ITEM, *values)
        if row is None or not row["has_lease"]:
            raise LeaseLostError
        if not row["has_item"]:
            raise RecordNotFoundError.item(thread_id, item_id)
        if row["message_id"] is None:
            raise ValidationError(
                "There is no user's message to answer again.", reason=reasons.ERROR_REASON_FAILED_PRECONDITION
            )
        return row["message_id"], row["removed"] or []

    async def save_attachment(self, attachment: Attachment, context: RequestContext) -> None:
        """Write an attachment, its integration-only metadata included."""
        lease = lease_of(context, attachment.thread_id)
        row = await self._database.fetchrow(
            statements.SAVE_ATTACHMENT,
            context["user_id"],
            attachment.id,
            attachment.thread_id,
            attachment.name,
            attachment.mime_type,
            json_of(attachment),
            lease and lease.epoch,
        )
        if row is None or not (row["is_saved"] or row["has_lease"]):
            raise LeaseLostError
        if not row["is_saved"]:
            raise RecordNotFoundError.attachment(attachment.id)

    async def load_attachment(self, attachment_id: str, context: RequestContext) -> Attachment:
        """An attachment of the user."""
        row = await self._database.fetchrow(statements.LOAD_ATTACHMENT, context["user_id"], attachment_id)
        if row is None:
            raise RecordNotFoundError.attachment(attachment_id)
        attachment = attachment_of(row, attachment_id)
        return attachment.model_copy(update={"thread_id": row["session_id"]})

    async def delete_attachment(self, attachment_id: str, context: RequestContext) -> None:
        """Delete what is known of an attachment. The file is the attachment store's."""
        if not await self._database.fetch(statements.DELETE_ATTACHMENT, context["user_id"], attachment_id):
            raise RecordNotFoundError.attachment(attachment_id)

    async def save_feedback(
        self, thread_id: str, item_ids: list[str], kind: FeedbackKind, context: RequestContext
    ) -> None:
        """Write what the user thinks of some items, or nothing where one of them isn't there for him to see."""
        row = await self._database.fetchrow(statements.SAVE_FEEDBACK, context["user_id"], thread_id, item_ids, kind)
        _check_nothing_missing(row, thread_id)

    async def require_items(self, thread_id: str, item_ids: list[str], context: RequestContext) -> None:
        """Raise unless the thread has all these items, for the user to see."""
        row = await self._database.fetchrow(statements.MISSING_ITEM, context["user_id"], thread_id, item_ids)
        _check_nothing_missing(row, thread_id)

    async def _update_thread(
        self, thread_id: str, columns: Columns, seen: Sequence[Columns], context: RequestContext
    ) -> str | None:
        """Write what has changed. Returns the title that the thread has then."""
        # Other than all that the request has seen: what it saves may be older than what it loaded last.
        changed = [name for name, value in columns.items() if all(value != version[name] for version in seen)]
        # A title that came meanwhile is the user's, also where the request has seen it since.
        known_title = seen[0]["title"]
        lease = lease_of(context, thread_id)
        values = (context["user_id"], thread_id, changed, known_title, *columns.values(), lease and lease.epoch)
        row = await self._database.fetchrow(statements.UPDATE_THREAD, *values)
        if row is None:
            raise RecordNotFoundError.thread(thread_id) if lease is None else LeaseLostError
        title: str | None = row["title"]
        return title

    async def _load_items(
        self, statement: str, thread_id: str, after: str | None, limit: int, context: RequestContext
    ) -> Page[ThreadItem]:
        size = _page_size(limit)
        rows = await self._load_rows(statement, thread_id, after, size, context)
        items = await _each(rows[:size], item_of)
        has_more = len(rows) > size
        return Page(data=items, has_more=has_more, after=items[-1].id if has_more else None)

    async def _load_rows(
        self, statement: str, thread_id: str, after: str | None, size: int, context: RequestContext
    ) -> list[asyncpg.Record]:
        """The rows of a page, and one more where there is another page."""
        rows = await self._database.fetch(statement, context["user_id"], thread_id, after, size + 1)
        if not rows:
            await self._check_items_page(thread_id, after, context)
        return rows

    async def _check_items_page(self, thread_id: str, after: str | None, context: RequestContext) -> None:
        """Raise what is wrong if a page is empty because of what it was asked for."""
        row = await self._database.fetchrow(statements.THREAD_AND_ITEM_EXIST, context["user_id"], thread_id, after)
        if row is None or not row["thread"]:
            raise RecordNotFoundError.thread(thread_id)
        if after is not None and not row["item"]:
            raise _unknown_cursor(after)


def item_values(item: ThreadItem) -> tuple[object, ...]:
    """What the columns of an item hold, from its id on."""
    return (item.id, item.type, sender_of(item), text_of(item), to_utc(item.created_at), json_of_item(item))


def _check_written(row: asyncpg.Record | None, thread_id: str, lease: Lease | None) -> None:
    if row is None:
        raise RecordNotFoundError.thread(thread_id) if lease is None else LeaseLostError()


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
    columns, seen = columns_of(thread), _seen(thread.id, context)
    if columns in seen:
        seen.remove(columns)
    seen.append(columns)


def _loaded_thread(row: asyncpg.Record | None, thread_id: str, context: RequestContext) -> ThreadMetadata:
    if row is None:
        raise RecordNotFoundError.thread(thread_id)
    thread = thread_of(row)
    _remember(thread, context)
    return thread
