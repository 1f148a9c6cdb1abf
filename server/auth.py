"""Who is calling. Nobody, unless this says otherwise."""

from __future__ import annotations

import re

from chatkit_grpc.errors import AuthenticationError
from chatkit_grpc.services import USER_HEADER, Metadata

from server.context import Auth
from server.settings import Settings

DEVELOPMENT_USER = "dev-user"
_USER_ID = re.compile(r"[A-Za-z0-9_.:@|-]{1,128}")


class Authenticator:
    """Recognises the user of a call by its metadata."""

    def __init__(self, settings: Settings) -> None:
        self._is_development = settings.is_development

    def __call__(self, metadata: Metadata) -> Auth:
        """The user of a call. Raises AuthenticationError."""
        if not self._is_development:
            raise AuthenticationError("Log in first: this server knows nobody yet but in ENVIRONMENT=development.")
        named = [value for key, value in metadata if key == USER_HEADER]
        if not named:
            return Auth(DEVELOPMENT_USER, "development")
        if len(named) > 1 or not isinstance(named[0], str) or not _USER_ID.fullmatch(named[0]):
            raise AuthenticationError(f"{USER_HEADER}: expected one id of 1 to 128 letters, digits or _.:@|-")
        return Auth(named[0], "development")
