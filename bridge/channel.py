"""The way to the servers: which one gets a call, when it is made again, and how soon one that vanished is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
from chatkit_grpc.environment import SettingsError, read_file
from chatkit_grpc.services import SERVICES

from bridge.settings import Settings

# Made again where a server can't be reached or breaks off: they change nothing, or nothing the second time. (What
# starts a run is made again by LastingCall, with its request_id; gRPC itself makes again whatever no server has seen.)
_REPEATABLE = frozenset(
    {
        "GetThread",
        "ListThreads",
        "ListItems",
        "SearchThreads",
        "CancelRun",
        "AcknowledgeRun",
        "UpdateThread",
        "DeleteThread",  # which knows that it may have been done before
        "AddFeedback",
        "GetAttachment",
        "GetPreview",
        "DownloadAttachment",  # until its first byte
    }
)
_REPEATS = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def open_channel(
    settings: Settings, credentials: grpc.ChannelCredentials | None, *, takes_any: bool = False
) -> grpc.aio.Channel:
    """A channel to all servers of the settings, in turn, but for those that say they don't serve.

    credentials: see below. takes_any: those too, since they can say why; and no call is made again.
    """
    options = [
        ("grpc.service_config", json.dumps(_service_config(takes_any=takes_any))),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # A server that froze or vanished is noticed within 13 s, one that comes back within 1. (The time-out that
        # counts is HTTP/2's: what gRPC calls the keepalive time-out has no effect of its own.)
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.http2.ping_timeout_ms", 3_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Despite its name how long connecting may take: one that is frozen takes connections, and never says a word.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        # A token may be large, and gRPC's own limit of 8 KiB drops calls at random up to 16.
        ("grpc.max_metadata_size", 64 * 1024),
        ("grpc.absolute_max_metadata_size", 64 * 1024),
        # What http_proxy names is not on the way to our own server.
        ("grpc.enable_http_proxy", 0),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(settings.grpc_target, options=options)
    if settings.grpc_server_name is not None:
        options.append(("grpc.ssl_target_name_override", settings.grpc_server_name))
    return grpc.aio.secure_channel(settings.grpc_target, credentials, options=options)


def channel_credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """By what servers are verified, and the bridge's own certificate where it has one; None is plaintext.

    Raises SettingsError for files that can't be read.
    """
    if settings.grpc_ca is None:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_read("GRPC_CA", settings.grpc_ca),
        private_key=_read("GRPC_KEY", settings.grpc_key),
        certificate_chain=_read("GRPC_CERTIFICATE", settings.grpc_certificate),
    )


def _read(name: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    held = read_file(name, path)
    # gRPC itself would take anything, and connect to nobody.
    if b"-----BEGIN " not in held:
        raise SettingsError(f"{name}: expected PEM in {path}")
    return held


def _service_config(*, takes_any: bool) -> dict[str, object]:
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if not takes_any:
        config["healthCheckConfig"] = {"serviceName": ""}
        config["methodConfig"] = [{"name": _repeatable_methods(), "retryPolicy": _REPEATS}]
    return config


def _repeatable_methods() -> list[dict[str, str]]:
    return [
        {"service": service.full_name, "method": method.name}
        for service in SERVICES.values()
        for method in service.methods
        if method.name in _REPEATABLE
    ]
