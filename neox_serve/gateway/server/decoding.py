"""Decodes request messages, with errors that say what is wrong: too large, not protobuf, or which fields are unknown or not UTF-8.

The transport passes requests on as bytes, because errors of grpc's deserializers name no field.
"""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from neox_serve.core.errors import FieldViolation, Reason, ServeError
from neox_serve.gateway.requests.violations import refusal

M = TypeVar("M", bound=Message)

TRANSPORT_LIMIT_FACTOR = 4
"""The transport's size limit is this many times ours. Messages in between are refused with details, larger ones without."""


class Decoder(Generic[M]):
    """Decodes messages of one type."""

    def __init__(self, message_type: type[M], max_bytes: int) -> None:
        self._type = message_type
        self._max_bytes = max_bytes
        self._bytes_type = _type_with_bytes(cast("Descriptor", message_type.DESCRIPTOR))

    def decode(self, raw: bytes) -> M:
        """Returns the message. Raises REQUEST_TOO_LARGE, or INVALID_ARGUMENT naming the fields."""
        if len(raw) > self._max_bytes:
            raise self._too_large(len(raw))
        try:
            message = self._type.FromString(raw)
        except DecodeError as error:
            raise refusal(Reason.INVALID_ARGUMENT, self._undecodable(raw)) from error
        size = message.ByteSize()
        message.DiscardUnknownFields()
        if message.ByteSize() != size:
            raise refusal(Reason.INVALID_ARGUMENT, _unknown_fields(self._type.FromString(raw)))
        return message

    def _too_large(self, size: int) -> ServeError:
        return ServeError(
            Reason.REQUEST_TOO_LARGE,
            f"the request has {size} bytes, must be at most {self._max_bytes}",
            metadata={"request_bytes": str(size), "max_request_bytes": str(self._max_bytes)},
        )

    def _undecodable(self, raw: bytes) -> list[FieldViolation]:
        """Returns a violation for each string that is not UTF-8 or, if there is none, for the whole message."""
        name = self._type.DESCRIPTOR.full_name
        try:
            lenient = self._bytes_type.FromString(raw)
        except DecodeError:
            return [
                FieldViolation("request", f"got {len(raw)} bytes that are not a {name}, must be that message in protobuf's wire format")
            ]
        found = [FieldViolation(path, "got bytes that are not UTF-8, must be Unicode text") for path in _not_utf8(lenient)]
        return found or [FieldViolation("request", f"is not a valid {name}")]


def _type_with_bytes(descriptor: Descriptor) -> type[Message]:
    """Returns the message type with every string field turned into a bytes field, which accepts anything."""
    pool = DescriptorPool()
    _add_file(pool, descriptor.file, set())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.full_name))


def _add_file(pool: DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add_file(pool, dependency, added)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    del proto.service[:]
    for message in proto.message_type:
        _strings_to_bytes(message)
    pool.Add(proto)


def _strings_to_bytes(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        if field.type == descriptor_pb2.FieldDescriptorProto.TYPE_STRING:
            field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    for nested in message.nested_type:
        _strings_to_bytes(nested)


def _not_utf8(message: Message) -> Iterator[str]:
    """Yields the paths of bytes fields that are not UTF-8."""
    for path, holder in _messages(message, ""):
        for field, value in holder.ListFields():
            if field.type == FieldDescriptor.TYPE_BYTES:
                values = list(value) if field.is_repeated else [value]
                for index, one in enumerate(values):
                    if not _is_utf8(one):
                        yield f"{path}{field.name}" + (f"[{index}]" if field.is_repeated else "")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unknown_fields(message: Message) -> list[FieldViolation]:
    return [
        FieldViolation(f"{path}{unknown.field_number}", f"{holder.DESCRIPTOR.full_name} has no field with number {unknown.field_number}")
        for path, holder in _messages(message, "")
        for unknown in cast("Iterator[Any]", UnknownFieldSet(holder))
    ]


def _messages(message: Message, path: str) -> Iterator[tuple[str, Message]]:
    """Yields the message and all nested messages, each with the prefix of its field paths ("", "prompts[0].", ...)."""
    yield path, message
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            for index, one in enumerate(value):
                yield from _messages(one, f"{path}{field.name}[{index}].")
        else:
            yield from _messages(value, f"{path}{field.name}.")
