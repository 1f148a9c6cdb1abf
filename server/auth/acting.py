"""Services that act for users: by a token with the service's audience or scope, they say in x-user-id for whom."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from chatkit_grpc.errors import PermissionDeniedError, ValidationError
from chatkit_grpc.services import USER_HEADER, Metadata

from server.auth.settings import AuthSettings
from server.context import Auth

USER_ID = re.compile(r"[A-Za-z0-9_.:@|-]{1,128}")
"""What the id of a user may be: it stands in logs, and in the keys of the database."""

log = logging.getLogger(__name__)


def named_user(metadata: Metadata) -> str | None:
    """The user that a call names, None where it names none. Raises ValidationError."""
    named = [value for key, value in metadata if key == USER_HEADER]
    if not named:
        return None
    if len(named) > 1 or not isinstance(named[0], str) or not USER_ID.fullmatch(named[0]):
        raise ValidationError.at(USER_HEADER, "expected one id of 1 to 128 letters, digits or _.:@|-")
    return named[0]


def act_for(auth: Auth, user_id: str, *, is_service: bool) -> Auth:
    """The user in whose name a service calls. Raises PermissionDeniedError for whoever isn't one."""
    if not is_service:
        raise PermissionDeniedError(f"{USER_HEADER}: only a service may act for a user; call without it.")
    log.info("%s acts for %s", auth.user_id, user_id)
    return Auth(user_id, "service", service=auth.user_id, claims=auth.claims)


def is_service(claims: Mapping[str, Any], settings: AuthSettings) -> bool:
    """Whether a token is a service's: by its audience, or by its scope, as the settings say."""
    audience, scope = claims.get("aud"), claims.get("scope", claims.get("scp"))
    return (settings.service_audience is not None and settings.service_audience in _words(audience)) or (
        settings.service_scope is not None and settings.service_scope in _words(scope, separator=" ")
    )


def _words(value: object, separator: str | None = None) -> list[Any]:
    if isinstance(value, str):
        return value.split(separator) if separator else [value]
    return value if isinstance(value, list) else []
