"""What the schema says of each RPC: whether it is known at all, and what it lets its caller do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chatkit_grpc.services import SERVICES
from chatkit_grpc.v1 import access_pb2
from chatkit_grpc.v1.access_pb2 import Access
from google.protobuf.descriptor import ServiceDescriptor

ALWAYS_OPEN = "/grpc.health.v1.Health/"
REFLECTION = ("/grpc.reflection.v1alpha.ServerReflection/", "/grpc.reflection.v1.ServerReflection/")
"""How the full names of RPCs begin that need no caller: a balancer and a command line have none."""


def rules(services: Iterable[ServiceDescriptor] = SERVICES.values()) -> Mapping[str, Access.ValueType]:
    """What each RPC is for, by its full name. One whose schema doesn't say is not among them."""
    return {
        f"/{service.full_name}/{method.name}": access
        for service in services
        for method in service.methods
        if (access := method.GetOptions().Extensions[access_pb2.access]) != access_pb2.ACCESS_UNSPECIFIED
    }


RULES = rules()


def access_of(rpc: str) -> Access.ValueType:
    """What an RPC is for. ACCESS_UNSPECIFIED where nobody has said: then it is for nobody."""
    return RULES.get(rpc, access_pb2.ACCESS_UNSPECIFIED)
