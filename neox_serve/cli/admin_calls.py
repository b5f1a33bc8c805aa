"""Calls of AdminService, through a gateway or directly on the database."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neox_serve.cli.connection import Connection
from neox_serve.cli.installation import AdminCall

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

_CALL_TIMEOUT_S = 30.0

DirectOption = Annotated[
    bool,
    typer.Option("--direct", help="Bypass the gateway and use the settings' database directly; needed to create the first admin."),
]


def admin_caller(connection: Connection, *, direct: bool) -> AdminCall:
    """The function that runs AdminService's methods: in a gateway or, with `direct`, in this process on the database."""
    if direct:
        return connection.installation.database_admin(connection.config)
    client = connection.client()
    return lambda request: client.admin(request, timeout_s=_CALL_TIMEOUT_S)


def print_messages(messages: "Iterable[Message] | Any") -> None:
    """Prints one line of JSON per protobuf message."""
    from google.protobuf.json_format import MessageToDict

    for message in messages:
        print(json.dumps(MessageToDict(message, always_print_fields_with_no_presence=True)))
