"""Where a user said something: the one question that the tools for an assistant ask the database themselves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from server.database import Database

_FIND = """
select
    session_id, title, message_id, sender_type, "timestamp",
    ts_headline('simple', left(content, 20000), query, 'MaxWords=40, MinWords=15, StartSel="", StopSel=""') as snippet
from chat_messages
join chat_sessions using (user_id, session_id),
    websearch_to_tsquery('simple', $2) as query
where user_id = $1 and session_id is distinct from $3 and not hidden and sender_type in ('user', 'assistant')
    and item_type in ('user_message', 'assistant_message')
    and to_tsvector('simple', left(content, 100000)) @@ query
order by "timestamp" desc, session_id, message_id
limit $4
"""
_MOST_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Place:
    """A message in which the words are.

    role: "user" or "assistant". snippet: what is said there around the words.
    """

    thread_id: str
    title: str | None
    item_id: str
    role: str
    said_at: datetime
    snippet: str


async def find_words(
    database: Database, user_id: str, words: str, limit: int, *, but_not_in: str | None = None
) -> list[Place]:
    """The newest messages of a user that have all the words, "in quotes" for a phrase, -without others.

    but_not_in: a thread that is left out, such as the one in which it is asked: the question has the words.
    It looks through what the user has said, without an index; that takes as long as he has said much.
    """
    rows = await database.fetch(_FIND, user_id, words.replace("\0", " "), but_not_in, limit)
    return [
        Place(
            thread_id=row["session_id"],
            title=row["title"],
            item_id=row["message_id"],
            role=row["sender_type"],
            said_at=row["timestamp"],
            snippet=row["snippet"][:_MOST_CHARACTERS],
        )
        for row in rows
    ]
