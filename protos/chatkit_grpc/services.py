"""The services, and the names on the wire that both halves use and no schema has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.descriptor import ServiceDescriptor

from chatkit_grpc.v1 import attachment_service_pb2, chat_service_pb2, run_service_pb2, thread_service_pb2

SERVICES: Mapping[str, ServiceDescriptor] = {
    service.full_name: service
    for module in (chat_service_pb2, thread_service_pb2, run_service_pb2, attachment_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}
"""All services of this package by their full names."""

Metadata = Sequence[tuple[str, str | bytes]]
"""What is sent along with a call."""

USER_HEADER = "x-user-id"
"""Who a call is for, where the caller may say so."""
SESSION_COOKIE = "better-auth.session_token"
"""Better Auth's session; on pages served by https its name begins with "__Secure-"."""
HOST_KEY = "chatkit-host"
"""Which host a page called, as the bridge saw it."""
PUBLIC_URL_KEY = "chatkit-public-url"
"""Where pages find the bridge, as it is told or as the page called it: URLs of attachments begin so."""
PREVIEW_KEY = "chatkit-preview-key"
"""What stands in for credentials where the preview of one picture is asked for."""
GO_ON_KEY = "chatkit-go-on"
"""Stands in the initial metadata of a call with many requests, once the server lets its caller in."""
REQUEST_METADATA_KEY = "chatkit-request-metadata-bin"
"""Carries the member `metadata` of a ChatKit request, as JSON."""
LAST_EVENT_ID_KEY = "last-event-id"
"""The last event that a caller has, as RUN_ID:SEQUENCE, where it repeats a call with the same request_id."""
AUTO_REQUEST_ID = "auto-"
"""What a request_id begins with that the bridge made from the request: it counts for a minute, until AcknowledgeRun."""
ATTEMPTS_KEY = "grpc-previous-rpc-attempts"
"""Says how often gRPC has made a call before this time; the first time it isn't there."""
OPENAI_KEY = "openai_key"
"""Stands in grpc.health.v1 for a service: SERVING where the server has an OPENAI_API_KEY."""
DICTATION_KEY = "dictation"
"""Likewise: SERVING where the assistant turns speech into text."""
MCP_PREFIX = "mcp."
"""What the names of MCP servers begin with in grpc.health.v1: SERVING while their tools are there."""
