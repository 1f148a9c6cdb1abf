"""Services: by a token with the service's audience or scope. They act for the user that they name in x-user-id.

What reads of all users (ACCESS_ALL_USERS) is for services that name none.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from chatkit_grpc.errors import PermissionDeniedError, ValidationError
from chatkit_grpc.services import USER_HEADER, Metadata

from server.auth.settings import AuthSettings
from server.auth.tokens import Claims, invalid
from server.context import Auth

_USER_ID = re.compile(r"[A-Za-z0-9_.:@|-]{1,128}")
USER_ID_FORM = "1 to 128 letters, digits or _.:@|-"
"""What the id of a user may be: it stands in logs, and in the keys of the database."""

log = logging.getLogger(__name__)


def named_user(metadata: Metadata) -> str | None:
    """The user that a call names, None where it names none. Raises ValidationError."""
    named = [value for key, value in metadata if key == USER_HEADER]
    if not named:
        return None
    if len(named) > 1 or not is_user_id(named[0]):
        raise ValidationError.at(USER_HEADER, f"expected one id of {USER_ID_FORM}")
    return str(named[0])


def is_user_id(value: object) -> bool:
    """Whether a value can be a user's id."""
    return isinstance(value, str) and _USER_ID.fullmatch(value) is not None


def user_in(claims: Claims, claim: str) -> str:
    """The id that a token says in a claim. Raises AuthenticationError where that can be nobody's."""
    user_id = claims.get(claim)
    if not is_user_id(user_id):
        raise invalid(f"`{claim}` is no user's id: expected {USER_ID_FORM}")
    return str(user_id)


def no_service() -> PermissionDeniedError:
    """What whoever names a user gets who may act for none."""
    return PermissionDeniedError(f"{USER_HEADER}: only a service may act for a user; call without it.")


def act_for(user_id: str, claims: Claims, settings: AuthSettings) -> Auth:
    """The user in whose name a service calls. Raises PermissionDeniedError for whoever isn't one."""
    if not _is_service(claims, settings):
        raise no_service()
    return service_for(user_in(claims, "sub"), user_id, claims)


def service_for(service: str, user_id: str, claims: Claims | None = None) -> Auth:
    """A service that acts for a user. It is logged."""
    log.info("%s acts for %s", service, user_id)
    return Auth(user_id, "service", service=service, claims=claims or {})


def act_for_all(named: str | None, claims: Claims, settings: AuthSettings) -> Auth:
    """The service that reads of all users. Raises PermissionDeniedError for whoever isn't one, or names a user."""
    if not _is_service(claims, settings):
        raise not_for_users()
    return service_for_all(user_in(claims, "sub"), named, claims)


def service_for_all(service: str, named: str | None, claims: Claims | None = None) -> Auth:
    """A service that reads of all users. It is logged. Raises PermissionDeniedError where it names one of them."""
    if named is not None:
        raise PermissionDeniedError(f"{USER_HEADER}: this reads of all users; call without it.")
    log.info("%s reads of all users", service)
    # Its calls count as those of one user, who isn't anybody: no user's id has a blank.
    return Auth(f"service {service}", "service", service=service, claims=claims or {})


def not_for_users() -> PermissionDeniedError:
    """What a user gets for what reads of all users."""
    return PermissionDeniedError("This reads of all users: only a service may.")


def check_is_for_users(claims: Claims, settings: AuthSettings) -> None:
    """Raise PermissionDeniedError where a token says nothing of a user: it is a service's, and names none."""
    if settings.audience not in _words(claims.get("aud")):
        raise PermissionDeniedError(f"A service acts for a user: name one in {USER_HEADER}.")


def _is_service(claims: Claims, settings: AuthSettings) -> bool:
    """By its audience, or by its scope, as the settings say."""
    scopes = [scope for name in ("scope", "scp") for scope in _words(claims.get(name), separator=" ")]
    return (settings.service_audience is not None and settings.service_audience in _words(claims.get("aud"))) or (
        settings.service_scope is not None and settings.service_scope in scopes
    )


def _words(value: object, separator: str | None = None) -> list[Any]:
    if isinstance(value, str):
        return value.split(separator) if separator else [value]
    return value if isinstance(value, list) else []
