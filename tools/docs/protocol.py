"""Renders protobuf packages from their descriptors, with the comments of the .proto files."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

from tools.docs.markdown import GENERATED, anchor, prose, table

_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
"""Field numbers of FileDescriptorProto, with which the paths of its comments begin."""
_NESTED_MESSAGE, _NESTED_ENUM, _FIELD, _ONEOF = 3, 4, 2, 8
"""Field numbers of DescriptorProto, with which the paths of its comments go on."""

_Comments = Mapping[tuple[int, ...], str]


def load_descriptors(folder: Path) -> FileDescriptorSet:
    """Descriptors, with comments, of every .proto file below a folder. Raises RuntimeError if protoc fails."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "descriptors.bin")
        arguments = ["protoc", f"-I{folder}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={output}", *files]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"protoc cannot read the files below {folder}")
        return FileDescriptorSet.FromString(output.read_bytes())


def render_protocol(descriptors: FileDescriptorSet, package: str, title: str, introduction: str) -> str:
    """The page of one package: for each file its services, messages and enums."""
    parts = [GENERATED, f"# {title}\n", introduction]
    for file in descriptors.file:
        if file.package == package:
            parts += _file(file)
    return "\n".join(parts)


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
    yield f"## {Path(file.name).name}\n"
    syntax = comments.get((12,), "")
    if syntax:
        yield _comment(syntax)
    for index, service in enumerate(file.service):
        yield from _service(service, (_SERVICE, index), comments)
    for index, message in enumerate(file.message_type):
        yield from _message(message, message.name, (_MESSAGE, index), comments)
    for index, enum in enumerate(file.enum_type):
        yield from _enum(enum, enum.name, (_ENUM, index), comments)


def _service(service: ServiceDescriptorProto, path: tuple[int, ...], comments: _Comments) -> Iterator[str]:
    yield _heading(3, service.name)
    yield _comment(comments.get(path, ""))
    for index, method in enumerate(service.method):
        yield _heading(4, f"{service.name}.{method.name}")
        takes = f"{'stream of ' if method.client_streaming else ''}{_link(method.input_type)}"
        gives = f"{'stream of ' if method.server_streaming else ''}{_link(method.output_type)}"
        yield f"{takes} → {gives}\n"
        yield _comment(comments.get((*path, 2, index), ""))


def _message(message: DescriptorProto, name: str, path: tuple[int, ...], comments: _Comments) -> Iterator[str]:
    yield _heading(3, name)
    yield _comment(comments.get(path, ""))
    maps = {f".{inner.name}": inner for inner in message.nested_type if inner.options.map_entry}
    rows = []
    for index, field in enumerate(message.field):
        rows.append([f"`{field.name}`", _field_type(field, maps), str(field.number), comments.get((*path, _FIELD, index), "")])
        if field.HasField("oneof_index") and not field.proto3_optional:
            rows[-1][3] = f"One of `{message.oneof_decl[field.oneof_index].name}`. {rows[-1][3]}"
    if rows:
        yield table(("Field", "Type", "Number", "Description"), rows)
    for index, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from _message(inner, f"{name}.{inner.name}", (*path, _NESTED_MESSAGE, index), comments)
    for index, enum in enumerate(message.enum_type):
        yield from _enum(enum, f"{name}.{enum.name}", (*path, _NESTED_ENUM, index), comments)


def _enum(enum: EnumDescriptorProto, name: str, path: tuple[int, ...], comments: _Comments) -> Iterator[str]:
    yield _heading(3, name)
    yield _comment(comments.get(path, ""))
    rows = [[f"`{value.name}`", str(value.number), comments.get((*path, 2, index), "")] for index, value in enumerate(enum.value)]
    yield table(("Value", "Number", "Description"), rows)


def _field_type(field: FieldDescriptorProto, maps: Mapping[str, DescriptorProto]) -> str:
    for suffix, entry in maps.items():
        if field.type_name.endswith(suffix):
            key, value = entry.field
            return f"map of {_scalar(key)} to {_scalar(value)}"
    label = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else "optional " if field.proto3_optional else ""
    return f"{label}{_scalar(field)}"


def _scalar(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(type_name: str) -> str:
    """A link to a type's heading if it is ours, else its name."""
    full = type_name.lstrip(".")
    for package, page in (("neox_serve.internal.v1.", "internal-api.md"), ("neox_serve.v1.", "api.md")):
        if full.startswith(package):
            name = full.removeprefix(package)
            return f"[{name}]({page}#{anchor(name)})"
    return f"`{full}`"


def _heading(level: int, name: str) -> str:
    return f"{'#' * level} {name} {{#{anchor(name)}}}\n"


def _comment(text: str) -> str:
    """A comment as Markdown: paragraphs, and code blocks of the lines that are indented."""
    lines: list[str] = []
    in_block = False
    for raw in text.rstrip().split("\n"):
        line = raw[1:] if raw.startswith(" ") else raw
        indented = line.startswith("  ")
        if indented != in_block and (indented or line.strip()):
            lines.append("\n```text" if indented else "```\n")
            in_block = indented
        lines.append(line.removeprefix("  ") if in_block else prose(line))
    if in_block:
        lines.append("```")
    return "\n".join(lines) + "\n"
