"""Lists of verdicts on items: a user's own, and for a service that evaluates answers those of all users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from chatkit_grpc.errors import ValidationError
from chatkit_grpc.v1 import thread_service_pb2 as pb
from chatkit_grpc.v1.item_pb2 import ThreadItem
from chatkit_grpc.v1.thread_pb2 import ORDER_ASC
from google.protobuf.timestamp_pb2 import Timestamp

from server import sdk
from server.context import RequestContext
from server.cursors import from_cursor, to_cursor
from server.database import Database, Record
from server.records import item_of_json
from server.statements import LOAD_THREAD
from server.store import RecordNotFoundError

_DEFAULT_SIZE = 20
_MOST = 1000
_MOST_WITH_ITEMS = 20
"""An item may be a megabyte, and the question before it another."""
_KINDS: Mapping[int, str | None] = {
    pb.FEEDBACK_KIND_UNSPECIFIED: None,
    pb.FEEDBACK_KIND_POSITIVE: "positive",
    pb.FEEDBACK_KIND_NEGATIVE: "negative",
}
_NUMBERS: Mapping[str, pb.FeedbackKind.ValueType] = {
    "positive": pb.FEEDBACK_KIND_POSITIVE,
    "negative": pb.FEEDBACK_KIND_NEGATIVE,
}

# A user's verdicts. Each order reads its index from where the page before ended.
LIST_OWN_ASC = """
with page as (
    select * from feedback
    where user_id = $1 and ($2::text is null or session_id = $2) and ($3::text is null or kind = $3)
        and updated_at >= coalesce($4::timestamptz, '-infinity') and updated_at < coalesce($5::timestamptz, 'infinity')
        and (updated_at, session_id, message_id)
            > (coalesce($6::timestamptz, '-infinity'), coalesce($7, ''), coalesce($8, ''))
    order by updated_at, session_id, message_id
    limit $9
)"""

LIST_OWN_DESC = """
with page as (
    select * from feedback
    where user_id = $1 and ($2::text is null or session_id = $2) and ($3::text is null or kind = $3)
        and updated_at >= coalesce($4::timestamptz, '-infinity') and updated_at < coalesce($5::timestamptz, 'infinity')
        and (updated_at, session_id, message_id)
            < (coalesce($6::timestamptz, 'infinity'), coalesce($7, ''), coalesce($8, ''))
    order by updated_at desc, session_id desc, message_id desc
    limit $9
)"""

# All users' verdicts, read from an index of their own.
LIST_ALL_ASC = """
with page as (
    select * from feedback
    where ($3::text is null or kind = $3) and $2::text is null
        and updated_at >= coalesce($4::timestamptz, '-infinity') and updated_at < coalesce($5::timestamptz, 'infinity')
        and (updated_at, user_id, session_id, message_id)
            > (coalesce($6::timestamptz, '-infinity'), coalesce($1, ''), coalesce($7, ''), coalesce($8, ''))
    order by updated_at, user_id, session_id, message_id
    limit $9
)"""

LIST_ALL_DESC = """
with page as (
    select * from feedback
    where ($3::text is null or kind = $3) and $2::text is null
        and updated_at >= coalesce($4::timestamptz, '-infinity') and updated_at < coalesce($5::timestamptz, 'infinity')
        and (updated_at, user_id, session_id, message_id)
            < (coalesce($6::timestamptz, 'infinity'), coalesce($1, ''), coalesce($7, ''), coalesce($8, ''))
    order by updated_at desc, user_id desc, session_id desc, message_id desc
    limit $9
)"""

# With $10 each comes with its item, and with the last message of the user before that.
_ITEMS = """
select page.*, item.item, question.message_id as question_id, question.item as question
from page
left join chat_messages as item
    on $10::boolean
    and item.user_id = page.user_id and item.session_id = page.session_id and item.message_id = page.message_id
left join lateral (
    select message_id, item from chat_messages
    where user_id = item.user_id and session_id = item.session_id and position < item.position
        and item_type = 'user_message'
    order by position desc
    limit 1
) as question on true
"""
_IN_ORDER = "order by page.updated_at, page.user_id, page.session_id, page.message_id"
_IN_REVERSE = "order by page.updated_at desc, page.user_id desc, page.session_id desc, page.message_id desc"
"""A join keeps no order by itself."""

_OWN = {True: LIST_OWN_ASC + _ITEMS + _IN_ORDER, False: LIST_OWN_DESC + _ITEMS + _IN_REVERSE}
_ALL = {True: LIST_ALL_ASC + _ITEMS + _IN_ORDER, False: LIST_ALL_DESC + _ITEMS + _IN_REVERSE}
"""By whether the order is ascending."""


class FeedbackLists:
    """Lists verdicts.

    guarded: the database as the store sees it. database: the same without the wall between users.
    """

    def __init__(self, guarded: Database, database: Database) -> None:
        self._guarded = guarded
        self._database = database

    async def of_user(self, request: pb.ListFeedbackRequest, context: RequestContext) -> pb.ListFeedbackResponse:
        """A page of the user's own. Raises NotFoundError for a thread that isn't there, and ValidationError."""
        user_id, thread_id = context["user_id"], request.thread_id if request.HasField("thread_id") else None
        after = from_cursor(request.after, datetime, str, str) if request.after else (None, None, None)
        size = _page_size(request.limit, request.include_items)
        filters = _filters(request.filter)
        statement = _OWN[request.order == ORDER_ASC]
        values = (user_id, thread_id, *filters, *after, size + 1, request.include_items)
        rows = await self._guarded.fetch(statement, *values)
        if not rows and thread_id is not None and not await self._guarded.fetch(LOAD_THREAD, user_id, thread_id):
            raise RecordNotFoundError.thread(thread_id)
        response = pb.ListFeedbackResponse(data=map(_feedback, rows[:size]), has_more=len(rows) > size)
        if rows:
            last = rows[:size][-1]
            response.after = to_cursor(last["updated_at"], last["session_id"], last["message_id"])
        return response

    async def of_all(self, request: pb.ListAllFeedbackRequest) -> pb.ListAllFeedbackResponse:
        """A page of all users'. Raises ValidationError."""
        cursor = from_cursor(request.after, datetime, str, str, str) if request.after else (None, None, None, None)
        given_at, user_id, *on = cursor
        size = _page_size(request.limit, request.include_items)
        values = (user_id, None, *_filters(request.filter), given_at, *on, size + 1, request.include_items)
        rows = await self._database.fetch(_ALL[request.order == ORDER_ASC], *values)
        response = pb.ListAllFeedbackResponse(data=map(_feedback, rows[:size]), has_more=len(rows) > size)
        if rows:
            last = rows[:size][-1]
            response.after = to_cursor(last["updated_at"], last["user_id"], last["session_id"], last["message_id"])
        return response


def _page_size(wanted: int, include_items: bool) -> int:  # as the request has it
    return min(wanted or _DEFAULT_SIZE, _MOST_WITH_ITEMS if include_items else _MOST)


def _filters(wanted: pb.FeedbackFilter) -> Sequence[Any]:
    """The kind, and from when until when. Raises ValidationError."""
    if wanted.kind not in _KINDS:
        raise ValidationError.at("$.params.filter.kind", "expected positive or negative")
    return _KINDS[wanted.kind], _time(wanted, "since"), _time(wanted, "until")


def _time(wanted: pb.FeedbackFilter, name: str) -> datetime | None:
    if not wanted.HasField(name):  # type: ignore[arg-type]  # one of its two times
        return None
    time: Timestamp = getattr(wanted, name)
    try:
        return time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValidationError.at(f"$.params.filter.{name}", "expected a time of the years 1 to 9999") from None


def _feedback(row: Record) -> pb.Feedback:
    feedback = pb.Feedback(
        user_id=row["user_id"],
        thread_id=row["session_id"],
        item_id=row["message_id"],
        kind=_NUMBERS[row["kind"]],
    )
    feedback.created_at.FromDatetime(row["created_at"])
    feedback.updated_at.FromDatetime(row["updated_at"])
    if row["item"] is not None:
        feedback.item.CopyFrom(_item(row["message_id"], row["item"]))
    if row["question"] is not None:
        feedback.user_message.CopyFrom(_item(row["question_id"], row["question"]))
    return feedback


def _item(item_id: str, item: str) -> ThreadItem:
    return sdk.to_message(item_of_json(item_id, item), ThreadItem)
