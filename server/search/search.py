"""SearchThreads: a page of the threads on which something is said, with the passages that match."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby

from chatkit_grpc.errors import LimitError, Quota
from chatkit_grpc.v1 import thread_service_pb2 as pb
from chatkit_grpc.v1.thread_pb2 import Thread

from server import sdk
from server.context import RequestContext
from server.cursors import from_cursor, to_cursor
from server.database import Database, Record
from server.limits.at_once import AtOnce
from server.records import thread_of
from server.row_security import RowSecurityDatabase
from server.search.query import parse
from server.search.snippets import Match, find_matches, snippet
from server.search.statements import SEARCH, SEARCH_BEHIND_THE_WALL
from server.search.words import LONGEST_TEXT

_DEFAULT_SIZE = 20
_MOST_THREADS = 100
_MOST_ITEMS = 3
_MOST_AT_ONCE = 3
_CURSOR = (datetime, bool, datetime, str)
"""When the search began; then where the last thread of the page stands: by its title, its newest hit, its id."""
_SPEAKERS: Mapping[str, pb.Speaker.ValueType] = {
    "user": pb.SPEAKER_USER,
    "assistant": pb.SPEAKER_ASSISTANT,
    "tool": pb.SPEAKER_TOOL,
}


def _too_many() -> LimitError:
    words = f"You have {_MOST_AT_ONCE} searches at once already; wait for one of them."
    return LimitError(words, retry_after=1.0, quota=Quota("searches_at_once", _MOST_AT_ONCE))


class Search:
    """Finds what a user's threads say."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._at_once = AtOnce(_MOST_AT_ONCE, _too_many)
        self._statement = SEARCH_BEHIND_THE_WALL if isinstance(database, RowSecurityDatabase) else SEARCH

    async def find(self, request: pb.SearchThreadsRequest, context: RequestContext) -> pb.SearchThreadsResponse:
        """A page. Raises ValidationError for a query without words, or too many, and for an unknown cursor.

        LimitError where the user has as many searches at once as he may: a slow one holds a connection that all share.
        """
        with self._at_once.one_more(context["user_id"]):
            return await self._find(request, context)

    async def _find(self, request: pb.SearchThreadsRequest, context: RequestContext) -> pb.SearchThreadsResponse:
        user_id, query = context["user_id"], parse(request.query)
        size = min(request.limit or _DEFAULT_SIZE, _MOST_THREADS)
        after = from_cursor(request.after, *_CURSOR) if request.after else (None,) * len(_CURSOR)
        rows = await self._database.fetch(
            self._statement, user_id, query.lookup(user_id), *after, size + 1, _MOST_ITEMS, LONGEST_TEXT
        )
        threads = [list(group) for _, group in groupby(rows, key=lambda row: row["session_id"])]
        response = pb.SearchThreadsResponse(has_more=len(threads) > size)
        pattern = query.matches()
        for of_thread in threads[:size]:
            response.data.append(_found_thread(of_thread, pattern))
            await asyncio.sleep(0)  # long texts take their time, and not all at a stretch
        if response.has_more:
            last = threads[size - 1][0]
            began = after[0] or last["as_of"]
            response.after = to_cursor(began, last["by_title"], last["newest"], last["session_id"])
        return response


def _found_thread(rows: Sequence[Record], pattern: re.Pattern[str]) -> pb.FoundThread:
    """A thread, from a row for each of the items that are shown."""
    first = rows[0]
    found = pb.FoundThread(
        thread=sdk.to_message(sdk.thread_response(thread_of(first)), Thread), item_count=first["item_count"]
    )
    if first["by_title"]:
        found.title_matches.extend(map(_range, find_matches(first["title"], pattern)))
    found.items.extend(_found_item(row, pattern) for row in rows if row["message_id"] is not None)
    return found


def _found_item(row: Record, pattern: re.Pattern[str]) -> pb.FoundItem:
    passage = snippet(row["content"], pattern)
    item = pb.FoundItem(item_id=row["message_id"], speaker=_SPEAKERS[row["sender_type"]], snippet=passage.text)
    item.created_at.FromDatetime(row["timestamp"])
    item.matches.extend(map(_range, passage.matches))
    return item


def _range(match: Match) -> pb.TextRange:
    return pb.TextRange(start=match.start, length=match.length)
