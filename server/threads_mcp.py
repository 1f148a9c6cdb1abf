"""An MCP server by which an assistant looks into its user's own threads.

The default assistant has it inside the process (server/mcp_servers/in_process.py). For any other client of MCP:

    DATABASE_URL=postgresql://… python -m server.threads_mcp USER_ID

For whom it looks is said by whoever runs it, and never by a model.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from typing import Annotated, Any, ParamSpec

from chatkit.types import Page, ThreadItem, ThreadMetadata
from chatkit_grpc.environment import Environment, SettingsError
from chatkit_grpc.errors import ChatKitError, DatabaseError
from chatkit_grpc.process import refuse
from chatkit_grpc.v1.thread_service_pb2 import FoundThread, SearchThreadsRequest, Speaker
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from server.auth.acting import USER_ID_FORM, is_user_id
from server.context import Auth, RequestContext
from server.database import open_database
from server.failures import describe
from server.item_text import sender_of, text_of
from server.mcp_servers.caller import THREAD_META, USER_META
from server.row_security import with_row_security
from server.search.search import Search
from server.settings import Settings
from server.store import PostgresStore
from server.times import to_utc

NAME = "threads"

_MOST_CHARACTERS = 4_000
"""How much of one message is shown."""
_MOST_CHARACTERS_OF_PAGE = 30_000
_READS = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

P = ParamSpec("P")
Limit = Annotated[int, Field(ge=1, le=50, description="How many at most.")]
ThreadId = Annotated[str, Field(min_length=1, max_length=200)]
Words = Annotated[
    str,
    Field(min_length=1, max_length=500, description='The words to look for; "in quotes" as a phrase, -without others.'),
]
After = Annotated[str | None, Field(max_length=200, description="`next` of the page before, where there is one.")]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reader:
    """For whom is read, and on which thread he asks, where he does so on one."""

    user_id: str
    thread_id: str | None = None

    def context(self) -> RequestContext:
        """A context for the store, of its own: what is read here is nothing that the run has read."""
        return RequestContext.of(Auth(self.user_id, "tool"))


Who = Callable[[Context[Any, Any]], Reader]
"""Says for whom a call is."""


def caller_in_metadata(call: Context[Any, Any]) -> Reader:
    """The caller as server/mcp_servers binds it from the run. Inside this process nobody else writes metadata."""
    meta: Any = call.request_context.meta or {}
    return Reader(meta[USER_META], meta[THREAD_META])


def threads_server(store: PostgresStore, who: Who) -> MCPServer[Any]:
    """The server, for the users that `who` names."""
    with _logging_left_alone():
        server: MCPServer[Any] = MCPServer(NAME, title="The user's threads")
    search = Search(store.database)

    @server.tool(title="List threads", annotations=_READS, structured_output=False)
    @_with_words_for_failures
    async def list_threads(call: Context[Any, Any], limit: Limit = 20, after: After = None) -> str:
        """List the user's own earlier threads (conversations), newest first: their ids, titles and dates."""
        page = await store.load_threads(limit, after, "desc", who(call).context())
        return _json({"threads": [_thread(thread) for thread in page.data], **_next(page)})

    @server.tool(title="Search threads", annotations=_READS, structured_output=False)
    @_with_words_for_failures
    async def search_threads(call: Context[Any, Any], words: Words, limit: Limit = 10) -> str:
        """Find where something was said in the user's own earlier threads; first those whose titles have the words."""
        reader = who(call)
        # One more: the thread on which it is asked has the words, too.
        found = await search.find(SearchThreadsRequest(query=words, limit=limit + 1), reader.context())
        others = [thread for thread in found.data if thread.thread.id != reader.thread_id]
        return _json({"found": [place for thread in others[:limit] for place in _places(thread)]})

    @server.tool(title="Read a thread", annotations=_READS, structured_output=False)
    @_with_words_for_failures
    async def read_thread(
        call: Context[Any, Any], thread_id: ThreadId, limit: Limit = 20, after: After = None, newest_first: bool = False
    ) -> str:
        """Read what was said in one of the user's own threads, page by page."""
        order = "desc" if newest_first else "asc"
        context = who(call).context()
        thread = await store.load_thread(thread_id, context)
        page = await store.load_visible_items(thread_id, after, limit, order, context)
        return _json({"thread": _thread(thread), **_messages(page)})

    return server


def _with_words_for_failures(tool: Callable[P, Awaitable[str]]) -> Callable[P, Awaitable[str]]:
    """A tool whose failures are told in our words, and logged without those that were said."""

    @functools.wraps(tool)
    async def run(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            return await tool(*args, **kwargs)
        except ChatKitError as error:
            raise ToolError(error.message) from None
        except Exception as error:  # noqa: BLE001 # the SDK would log its words
            log.error("a tool for threads failed: %s", describe(error))  # noqa: TRY400 # as above
            raise ToolError("The threads can't be read for now.") from None

    return run


def _thread(thread: ThreadMetadata) -> dict[str, object]:
    return {"id": thread.id, "title": thread.title, "created": _time(thread)}


def _places(found: FoundThread) -> Iterator[dict[str, object]]:
    """The newest messages of a thread that have the words; where only its title has them, the thread."""
    thread: dict[str, object] = {"thread_id": found.thread.id, "title": found.thread.title or None}
    for item in found.items:
        yield {
            **thread,
            "role": Speaker.Name(item.speaker).removeprefix("SPEAKER_").lower(),
            "time": item.created_at.ToDatetime(UTC).isoformat(timespec="seconds"),
            "text": item.snippet,
        }
    if not found.items:
        yield thread


def _messages(page: Page[ThreadItem]) -> dict[str, object]:
    """What is said in a page, cut where it is too much: then the next page begins there."""
    messages: list[dict[str, object]] = []
    characters, last = 0, None
    for item in page.data:
        text = text_of(item)
        shown = text[:_MOST_CHARACTERS]
        characters += len(shown)
        if characters > _MOST_CHARACTERS_OF_PAGE:
            return {"messages": messages, "next": last}
        last = item.id
        if shown:
            messages.append({"role": sender_of(item), "time": _time(item), "text": shown, **_cut(text)})
    return {"messages": messages, **_next(page)}


def _cut(text: str) -> dict[str, object]:
    left_out = len(text) - _MOST_CHARACTERS
    return {"characters_left_out": left_out} if left_out > 0 else {}


def _next(page: Page[Any]) -> dict[str, object]:
    return {"next": page.after} if page.has_more else {}


def _time(value: ThreadMetadata | ThreadItem) -> str:
    return to_utc(value.created_at).isoformat(timespec="seconds")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def _logging_left_alone() -> Iterator[None]:
    """MCPServer sets up logging for the whole process, unless somebody has done so already."""
    nobody = logging.NullHandler()
    logging.getLogger().addHandler(nobody)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(nobody)


def main(arguments: list[str]) -> int:
    """Serve over standard input and output until the input ends. Exit with 2 where something must be said otherwise."""
    logging.basicConfig(level="WARNING")
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # quotes what is said
    try:
        asyncio.run(_serve(_reader(arguments), _settings()))
    except (SettingsError, DatabaseError) as error:
        return refuse("server.threads_mcp", error)
    return 0


def _reader(arguments: list[str]) -> Reader:
    if len(arguments) != 1 or not is_user_id(arguments[0]):
        raise SettingsError(f"expected one argument, the id of the user whose threads are read: {USER_ID_FORM}")
    return Reader(arguments[0])


def _settings() -> Settings:
    """The database's alone: who may read here is decided by who may start this."""
    env = Environment()
    url, walled = env.text("DATABASE_URL"), env.bool("ROW_LEVEL_SECURITY", default=False)
    env.check()
    if not url:
        raise SettingsError("DATABASE_URL: expected the database of the threads, as the server has it")
    return Settings(database_url=url, database_pool_size=2, row_level_security=bool(walled))


async def _serve(reader: Reader, settings: Settings) -> None:
    async with open_database(settings) as database:
        store = PostgresStore(await with_row_security(database) if settings.row_level_security else database)
        await threads_server(store, lambda _: reader).run_stdio_async()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
