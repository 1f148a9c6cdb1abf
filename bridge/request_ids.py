"""The request_id of a request that starts a run, which makes repeating it safe: the caller's own, or one made here."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from typing import Any
from uuid import uuid4

from chatkit_grpc.errors import ValidationError
from chatkit_grpc.services import AUTO_REQUEST_ID, USER_HEADER
from google.protobuf.message import Message
from starlette.datastructures import Headers

from bridge.cookies import session_cookies

KEY_HEADER = "Idempotency-Key"
FRAME_HEADER = "chatkit-frame-instance-id"
_FIELD = "request_id"
_QUOTED = re.compile(r'"(.*)"')
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


def identify(parameters: Message, headers: Headers, body: bytes) -> bool:
    """Give a request that starts a run its id. Raises ValidationError for one that the caller must not choose.

    Returns whether the id was derived from the request, so that it must count no longer once the page has its answer.
    """
    if _FIELD not in parameters.DESCRIPTOR.fields_by_name:
        return False
    request: Any = parameters
    if KEY_HEADER in headers:
        request.request_id = _key(headers[KEY_HEADER])
        return False
    if request.request_id:
        _refuse_ours(f"$.params.{_FIELD}", request.request_id)
        return False
    is_from_a_page = FRAME_HEADER in headers
    # A random one is for the bridge alone, which may have to make the same call again.
    request.request_id = AUTO_REQUEST_ID + (_digest(headers, body) if is_from_a_page else uuid4().hex)
    return is_from_a_page


def _key(header: str) -> str:
    # The IETF's draft has quotes around the key, most clients have none.
    quoted = _QUOTED.fullmatch(header)
    key = quoted[1] if quoted else header
    if not _KEY.fullmatch(key):
        raise ValidationError.at(KEY_HEADER, "expected 1 to 128 printable ASCII characters without spaces")
    _refuse_ours(KEY_HEADER, key)
    return key


def _refuse_ours(path: str, key: str) -> None:
    if key.startswith(AUTO_REQUEST_ID):
        raise ValidationError.at(path, f'expected one that does not begin with "{AUTO_REQUEST_ID}"')


def _digest(headers: Headers, body: bytes) -> str:
    """The same for a POST that a page repeats, and for no other frame's or user's."""
    whose = [headers.getlist(name) for name in (FRAME_HEADER, "authorization", USER_HEADER)]
    whose.append(session_cookies(headers))
    digest = sha256(json.dumps(whose).encode())
    digest.update(body)
    return digest.hexdigest()
