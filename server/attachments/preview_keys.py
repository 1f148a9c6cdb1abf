"""Who may see a picture's preview without credentials: whoever has its key, which stands in the preview's URL.

An <img> sends none, and the URL is kept in messages, also before there is a preview. The key names the picture and its
owner, in a form that only the servers of this database can make and read (AES-SIV, RFC 5297): so it can't be guessed,
opens nothing else, is the same each time, and needs no table of its own.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable

from chatkit_grpc.errors import AuthenticationError
from chatkit_grpc.services import PREVIEW_KEY, Metadata
from chatkit_grpc.v1 import access_pb2
from chatkit_grpc.v1.access_pb2 import Access
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from server.attachments.statements import LOAD_KEY, MAKE_KEY
from server.context import Auth
from server.database import Database

BY_KEY = "preview_key"
"""How a caller was recognised (Auth.method) who has nothing but a key; the claim `attachment_id` says of what."""

_SECRET = "attachment_previews"  # noqa: S105 # its name
_MOST_CHARACTERS = 1000

Authenticate = Callable[[Metadata, Access.ValueType], Awaitable[Auth]]


class PreviewKeys:
    """Makes and reads keys. secret: 64 bytes."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESSIV(secret)

    def make(self, user_id: str, attachment_id: str) -> str:
        """The key of a user's picture, as it stands in a URL."""
        sealed = self._cipher.encrypt(f"{user_id}\n{attachment_id}".encode(), None)
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def read(self, key: str) -> Auth:
        """Whom a key makes of its bearer. Raises AuthenticationError."""
        try:
            sealed = base64.urlsafe_b64decode(key[:_MOST_CHARACTERS] + "=" * (-len(key) % 4))
            user_id, _, attachment_id = self._cipher.decrypt(sealed, None).decode().partition("\n")
        except (InvalidTag, ValueError, binascii.Error):
            raise AuthenticationError("This is no key of a preview.", metadata={"cause": "invalid"}) from None
        return Auth(user_id, BY_KEY, claims={"attachment_id": attachment_id})


async def load_preview_keys(database: Database) -> PreviewKeys:
    """The keys that all servers of a database share."""
    await database.fetch(MAKE_KEY, _SECRET, AESSIV.generate_key(512))
    return PreviewKeys(await database.fetchval(LOAD_KEY, _SECRET))


def with_preview_keys(authenticate: Authenticate, keys: PreviewKeys) -> Authenticate:
    """An authenticator that takes the key for credentials too, where a preview is asked for and nowhere else."""

    async def authenticate_too(metadata: Metadata, access: Access.ValueType) -> Auth:
        if access != access_pb2.ACCESS_PREVIEW:
            return await authenticate(metadata, access)
        given = [value for name, value in metadata if name == PREVIEW_KEY]
        if not given:
            return await authenticate(metadata, access_pb2.ACCESS_READ)
        return keys.read(str(given[0]))

    return authenticate_too
