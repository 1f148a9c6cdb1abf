"""The token that a call came with, kept for as long as its context, to be passed on to where an operator says.

The context holds a key with nothing in it; what it opens is kept here, so that the token is in no representation of
the context, no copy of its members as data, and no log. Only server/rpc.py keeps one, and only where the operator
has plugged in a server that gets it; only server/mcp_servers asks for it. A test says so.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from chatkit_grpc.services import Metadata

from server.context import RequestContext

_MEMBER = "_authorization"


class _Key:
    """Opens nothing by itself."""

    __slots__ = ("__weakref__",)


_kept: WeakKeyDictionary[_Key, str] = WeakKeyDictionary()


def keep_authorization(context: RequestContext, metadata: Metadata) -> None:
    """Keep the header of a user's own token. A service's token says nothing of the user, and is not kept."""
    header = next((value for key, value in metadata if key == "authorization"), None)
    if context.auth.method == "token" and isinstance(header, str):
        context[_MEMBER] = key = _Key()
        _kept[key] = header


def authorization_of(context: RequestContext) -> str | None:
    """The header that was kept, such as "Bearer eyJ…"; None where none was."""
    key = context.get(_MEMBER)
    return _kept.get(key) if isinstance(key, _Key) else None
