"""What the assistant is told about a request: who asks, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Auth:
    """How the user was recognised.

    user_id: the user the request acts for.
    method: "token", "session", "service" or "development".
    service: the service that acts for the user, where one does.
    claims: what the token says, checked; of a service that acts for a user, the service's.
        Sample: {"sub": "u1", "email": "ada@example.com", "exp": 1795000000}.
    """

    user_id: str
    method: str
    service: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """The request as the assistant may look at it, where it would look at a Starlette request otherwise.

    rpc: the full name of the RPC. Sample: "/chatkit_grpc.v1.ChatService/CreateThread".
    headers: what the caller sent along, names in lower case, credentials left out. Sample: {"accept-language": "de"}.
    metadata: the member `metadata` of the ChatKit request.
    """

    rpc: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


class RequestContext(dict[str, Any]):
    """The context that every method of the SDK's ChatKitServer and Store gets.

    Its members are `user_id` (str), `auth` (Auth), `request` (RequestInfo) and `tokens_used` (int); an assistant may
    add its own. They can be read as items and as attributes, since the SDK's users write both: context["user_id"] and
    context.user_id. What an assistant adds to `tokens_used` counts towards the user's TOKENS_PER_DAY.
    """

    @classmethod
    def of(cls, auth: Auth, request: RequestInfo | None = None) -> RequestContext:
        """The context of a request by a recognised user."""
        return cls(user_id=auth.user_id, auth=auth, request=request or RequestInfo(), tokens_used=0)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the request context has no {name!r}; it has {', '.join(sorted(self))}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value
