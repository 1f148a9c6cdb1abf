"""Where pages find attachments: at the bridge, under the address that it says it has."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from chatkit_grpc.environment import BRIDGE_LISTEN
from chatkit_grpc.services import PUBLIC_URL_KEY

from server.context import RequestContext

_MOST_CHARACTERS = 500


class Urls:
    """Makes absolute URLs. public_url: the bridge's, for callers that came by none."""

    def __init__(self, public_url: str | None) -> None:
        self._default = (public_url or f"http://{BRIDGE_LISTEN}").rstrip("/")

    def of(self, attachment_id: str, context: RequestContext) -> str:
        """Where an attachment's bytes are put and read."""
        return f"{self._base(context)}/api/chatkit/attachments/{quote(attachment_id, safe='')}"

    def of_preview(self, attachment_id: str, key: str, context: RequestContext) -> str:
        """Where its preview is read."""
        return f"{self.of(attachment_id, context)}/preview?key={key}"

    def _base(self, context: RequestContext) -> str:
        # It gets into what the caller himself is shown, and nobody else.
        told = context.request.headers.get(PUBLIC_URL_KEY, "")
        return told if _is_base(told) else self._default


def _is_base(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            len(url) <= _MOST_CHARACTERS
            and parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and (parts.port or 1) > 0
            and not {"@", "?", "#", " ", '"', "<", ">", "\\"} & set(url)
            and not url.endswith("/")
        )
    except ValueError:
        return False
