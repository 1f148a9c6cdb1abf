"""The way to the servers: which one gets a call, when it is made again, and how soon one that vanished is noticed."""

from __future__ import annotations

import json

import grpc
from chatkit_grpc.services import SERVICES

# Made again where a server can't be reached or breaks off: they change nothing, or nothing the second time.
_REPEATABLE = frozenset({"GetThread", "ListThreads", "ListItems", "CancelRun", "AcknowledgeRun"})
_REPEATS = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def open_channel(target: str, *, takes_any: bool = False) -> grpc.aio.Channel:
    """A channel to all servers of a target, in turn, but for those that say they don't serve.

    takes_any: those too, since they can say why; and no call is made again.
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
    return grpc.aio.insecure_channel(target, options=options)


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
