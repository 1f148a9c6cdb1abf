"""For whom a tool is called: bound from the run's context, never from what a model writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, cast

from agents.mcp import MCPToolMetaContext
from chatkit.agents import AgentContext
from mcp.types import RequestParamsMeta

from server.auth.passing import authorization_of
from server.context import RequestContext

USER_META = "chatkit-grpc/user_id"
THREAD_META = "chatkit-grpc/thread_id"
"""What a call's metadata calls the user, and the thread on which the tool is called."""

_KEY = "chatkit-grpc/caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """The user that a tool is called for.

    authorization: the header with his own token, where it may be passed on.
    """

    user_id: str
    thread_id: str
    authorization: str | None

    def __repr__(self) -> str:
        """Without the token: what holds this may be logged."""
        return f"Caller({self.user_id!r})"

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """Itself: the Agents SDK copies the metadata that this travels in."""
        return self


def bind_caller(call: MCPToolMetaContext, *, with_token: bool = False) -> dict[str, Any] | None:
    """The metadata in which a call carries its caller from the run to the server's object. It never gets further.

    with_token: whether the caller's own token goes along.
    None where the run isn't one of ChatKit's.
    """
    context = call.run_context.context
    if not isinstance(context, AgentContext) or not isinstance(context.request_context, RequestContext):
        return None
    request = context.request_context
    token = authorization_of(request) if with_token else None
    return in_metadata(Caller(request.user_id, context.thread.id, token))


def in_metadata(caller: Caller) -> dict[str, Any]:
    """A caller on his way to the server's object."""
    return {_KEY: caller}


def take_caller(meta: dict[str, Any] | None) -> tuple[Caller | None, dict[str, Any]]:
    """The caller in a call's metadata, and the rest of it."""
    rest = dict(meta or {})
    caller = rest.pop(_KEY, None)
    return (caller if isinstance(caller, Caller) else None), rest


def meta_of(caller: Caller) -> RequestParamsMeta:
    """What a server is told of the caller, in the metadata of a call."""
    return cast("RequestParamsMeta", {USER_META: caller.user_id, THREAD_META: caller.thread_id})
