"""Services that are known by their certificates: mutual TLS in place of a token, where SERVICE_CERTIFICATES names them.

Only a call that comes from the service itself counts. What a bridge passes on says so (`chatkit-host`): its own
certificate is no page's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import grpc
from chatkit_grpc.services import HOST_KEY, USER_HEADER, Metadata
from chatkit_grpc.v1.access_pb2 import ACCESS_ALL_USERS, Access

from server.auth.acting import named_user, no_service, service_for, service_for_all
from server.auth.tokens import missing
from server.context import Auth

_OTHER_CREDENTIALS = frozenset({"authorization", "cookie", HOST_KEY})


class ServiceCertificates:
    """The certificates of services, by their names: the alternative names of a certificate, or else its common name."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    def apply_to(self, metadata: Metadata, access: Access.ValueType) -> bool:
        """Whether it is a call's certificate that says who makes it: it is for services, and brings nothing else.

        access: what the call is for. Most are a service's only where they name a user.
        """
        keys = {key for key, _ in metadata}
        is_for_services = USER_HEADER in keys or access == ACCESS_ALL_USERS
        return bool(self._names) and is_for_services and not keys & _OTHER_CREDENTIALS

    def caller(self, call: grpc.aio.ServicerContext[Any, Any], access: Access.ValueType) -> Auth:
        """The user for whom a service calls, or the service that reads of all.

        Raises AuthenticationError without a certificate, PermissionDeniedError for one that is no service's, and
        ValidationError for a user's id that can't be.
        """
        # A certificate without any name has an empty one.
        names = [name.decode(errors="replace") for name in call.peer_identities() or () if name]
        if not names:
            raise missing()
        service = next((name for name in names if name in self._names), None)
        if service is None:
            raise no_service()
        user_id = named_user(tuple(call.invocation_metadata() or ()))
        if access == ACCESS_ALL_USERS:
            return service_for_all(service, user_id)
        if user_id is None:
            raise no_service()
        return service_for(service, user_id)
