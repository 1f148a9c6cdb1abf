"""What the schema says about ChatKit's JSON: the options of chatkit_grpc/v1/json.proto, read from the descriptors."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, OneofDescriptor

from chatkit_grpc.v1 import json_pb2 as options


def json_name(field: FieldDescriptor) -> str:
    """The member that a field is in JSON: its json_name where one is given, else its own name."""
    first, *others = field.name.split("_")
    is_default = field.json_name == first + "".join(map(str.capitalize, others))
    return field.name if is_default else str(field.json_name)


def json_type(field: FieldDescriptor) -> str:
    """The tag that selects a case of a oneof. Empty for any other field."""
    tag: str = field.GetOptions().Extensions[options.json_type]
    return tag


def tagged_oneof(descriptor: Descriptor) -> OneofDescriptor | None:
    """The oneof whose case ChatKit's "type" tells, where the message has one."""
    return next((o for o in descriptor.oneofs if any(json_type(field) for field in o.fields)), None)


def raw_json(field: FieldDescriptor) -> int:
    """Which RawJson a field holds; 0 for an ordinary one."""
    kind: int = field.GetOptions().Extensions[options.raw_json]
    return kind


def enum_names(enum: EnumDescriptor) -> dict[int, str]:
    """The JSON form of each value of an enum but UNSPECIFIED."""
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return {
        value.number: value.GetOptions().Extensions[options.json_value] or value.name.removeprefix(prefix).lower()
        for value in enum.values[1:]
    }


def is_optional(field: FieldDescriptor) -> bool:
    """Whether a field is declared `optional`; the compiler gives such a field a oneof of its own."""
    return field.containing_oneof is not None and field.containing_oneof.name == f"_{field.name}"


def is_required(field: FieldDescriptor) -> bool:
    """Whether a request must have the member."""
    required: bool = field.GetOptions().Extensions[options.required]
    return required


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_unwrapped(descriptor: Descriptor) -> bool:
    """Whether a message is written as the value of its only field."""
    unwrapped: bool = descriptor.GetOptions().Extensions[options.json_unwrap]
    return unwrapped


def minimum(field: FieldDescriptor) -> int | None:
    """The smallest number a request may give, where there is one."""
    extensions = field.GetOptions().Extensions
    return extensions[options.minimum] if field.GetOptions().HasExtension(options.minimum) else None


def content_member(oneof: OneofDescriptor) -> str:
    """The member that holds the fields of the selected case; empty where they stand beside "type"."""
    member: str = oneof.GetOptions().Extensions[options.json_content]
    return member


def unknown_case(oneof: OneofDescriptor) -> str | None:
    """The case that carries as JSON what the schema doesn't know, where there is one."""
    return next((f.name for f in oneof.fields if f.GetOptions().Extensions[options.json_unknown]), None)


def plain_fields(descriptor: Descriptor) -> list[FieldDescriptor]:
    """The fields that are members of the message's own object: all but the cases of its tagged oneof."""
    oneof = tagged_oneof(descriptor)
    return [
        field
        for field in descriptor.fields
        if (oneof is None or field.containing_oneof != oneof) and not _is_grpc_only(field)
    ]


def _is_grpc_only(field: FieldDescriptor) -> bool:
    only: bool = field.GetOptions().Extensions[options.grpc_only]
    return only


def is_union(field: FieldDescriptor) -> bool:
    """Whether a field holds one message with a tagged oneof."""
    return not field.is_repeated and field.message_type is not None and tagged_oneof(field.message_type) is not None


def value_field(field: FieldDescriptor) -> FieldDescriptor:
    """The field that holds a map's values."""
    return message_of(field).fields_by_name["value"]


def message_of(field: FieldDescriptor) -> Descriptor:
    """The message type of a field that holds messages."""
    if field.message_type is None:
        raise TypeError(f"{field.full_name} holds no message")
    return field.message_type


def no_rule_for(field: FieldDescriptor) -> TypeError:
    """What to raise for a type that no message of the schema has, so that nobody has said how JSON shows it."""
    return TypeError(f"{field.full_name}: the codec has no rule for this type")
