"""What AdminService does, asked of a gateway or done on the database itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.shared.connection import Connection
from cluster.commands.shared.settings import effective

if TYPE_CHECKING:
    from google.protobuf.message import Message

_CALL_TIMEOUT_S = 30.0
Ask = Callable[["Message"], Any]
DirectOption = Annotated[
    bool,
    typer.Option("--direct", help="Work on the settings' database itself, without a gateway: the first admin is made so."),
]


def asker(connection: Connection, *, direct: bool) -> Ask:
    """Asks a gateway, or the database."""
    if direct:
        return _direct(connection.config)
    client = connection.client()
    return lambda request: client.admin(request, timeout_s=_CALL_TIMEOUT_S)


def _direct(config: Path | None) -> Ask:
    import getpass
    import re

    from neox_serve.gateway.handlers.admin import AdminBackend
    from neox_serve.settings import database_url, secret_file
    from neox_serve.tenancy.database import open_database
    from neox_serve.tenancy.platform import read_secret
    from neox_serve.tenancy.tenant_store import TenantStore
    from neox_serve.tenancy.usage_store import UsageStore

    settings = effective(config)
    secret = read_secret(secret_file(settings), make=settings.access.secret_file is None)
    database, actor = open_database(database_url(settings)), f"{getpass.getuser()} (database)"
    desk = AdminBackend(TenantStore(database), UsageStore(database), secret)

    def ask(request: "Message") -> Any:
        words = re.findall("[A-Z][a-z]+", request.DESCRIPTOR.name.removesuffix("Request"))
        return getattr(desk, "_".join(words).lower())(request, actor)

    return ask


def print_messages(messages: Any) -> None:
    """One line of JSON a message."""
    from google.protobuf.json_format import MessageToDict

    for message in messages:
        print(json.dumps(MessageToDict(message, always_print_fields_with_no_presence=True)))
