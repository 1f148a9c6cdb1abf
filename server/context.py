"""What the assistant is told about a request: who asks, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.locales import preferred_locale


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


@dataclass(slots=True)
class TokenUsage:
    """What an answer has taken of models so far, as in chatkit_grpc/v1/run.proto."""

    model: str = ""
    requests: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    is_estimated: bool = False


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

    @property
    def locale(self) -> str | None:
        """The language that the user reads best, by Accept-Language. Sample: "de-AT". None where that says none."""
        return preferred_locale(self.headers.get("accept-language", ""))


class RequestContext(dict[str, Any]):
    """The context that every method of the SDK's ChatKitServer and Store gets.

    Its members are `user_id` (str), `auth` (Auth), `request` (RequestInfo), `tokens_used` (int) and `usage`
    (TokenUsage); an assistant may add its own. They can be read as items and as attributes, since the SDK's users write
    both: context["user_id"] and context.user_id. What an assistant adds to `tokens_used` counts towards the user's
    TOKENS_PER_DAY, and `usage` is what RunService.GetRun tells of the answer.
    """

    @classmethod
    def of(cls, auth: Auth, request: RequestInfo | None = None) -> RequestContext:
        """The context of a request by a recognised user."""
        return cls(user_id=auth.user_id, auth=auth, request=request or RequestInfo(), tokens_used=0, usage=TokenUsage())

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the request context has no {name!r}; it has {', '.join(sorted(self))}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value
