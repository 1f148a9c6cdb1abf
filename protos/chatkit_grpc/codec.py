"""ChatKit's JSON <-> messages. The schema is the table: chatkit_grpc/v1/json.proto says how it is read.

`encode` writes a message as ChatKit's JSON. `decode_request` reads a request strictly, with an error that names the
path of what is wrong. `decode` reads an event, an item or a thread without loss, so that what this version of the
schema doesn't know is carried along as it is. `check` applies a request's rules to a message that came by gRPC.
"""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import Message

from chatkit_grpc import free_json
from chatkit_grpc.checker import checker
from chatkit_grpc.decoder import decoder
from chatkit_grpc.encoder import encoder
from chatkit_grpc.errors import ValidationError
from chatkit_grpc.free_json import Invalid

M = TypeVar("M", bound=Message)


def encode(message: Message) -> str:
    """The message as ChatKit's JSON."""
    return encoder(message.DESCRIPTOR)(message)


def decode_request(message_type: type[M], body: str | bytes) -> M:
    """Read a request's JSON. Members that the schema doesn't know are ignored, as the SDK does.

    Raises ValidationError with the path of what is wrong. Sample: '$.params.limit: expected a whole number, got null'.
    """
    message = message_type()
    try:
        decoder(message_type.DESCRIPTOR, lossless=False)(free_json.loads(body), message)
    except Invalid as error:
        raise ValidationError.at(error.path, error.description) from None
    return message


def decode(message_type: type[M], value: Any) -> M:
    """Turn parsed JSON of an event, an item or a thread, as the SDK prints them, into a message.

    What the schema doesn't know is kept as JSON in the nearest message that has a case for it; outside of any such it
    is left out. Raises ValidationError for what can't be carried at all, such as a lone surrogate.
    """
    message = message_type()
    try:
        decoder(message_type.DESCRIPTOR, lossless=True)(value, message)
    except Invalid as error:
        raise ValidationError.at(error.path, error.description) from None
    return message


def check(request: Message) -> None:
    """Apply to a request that came by gRPC what `decode_request` applies to one that came as JSON.

    Raises ValidationError with the path of what is wrong, which starts at the message. Sample: "$.input: missing".
    """
    try:
        checker(request.DESCRIPTOR)(request)
    except Invalid as error:
        raise ValidationError.at(error.path, error.description) from None
