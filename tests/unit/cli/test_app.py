"""The command of a client installation."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from cluster.cli import app as server_app
from neox_serve.cli.app import SERVER_COMMANDS, base_app, client_app
from neox_serve.cli.errors import CommandError
from neox_serve.cli.installation import ClientInstallation, ConnectionDefaults


def names(app: typer.Typer) -> set[str]:
    """The names of an app's commands and groups."""
    return set(get_command(app).commands)  # type: ignore[attr-defined]


def invoke(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(client_app(), [*arguments], env=environment)


def test_client_names_every_command_of_the_server() -> None:
    assert names(client_app()) == names(server_app)
    assert names(base_app(ClientInstallation())) == names(server_app) - set(SERVER_COMMANDS)


@pytest.mark.parametrize("command", SERVER_COMMANDS)
def test_server_command_on_a_client_says_what_to_install(command: str) -> None:
    done = invoke(command, "anything", "--option", "1")
    assert done.exit_code == 1
    assert f"`neox-serve {command}` is a command of the server" in done.stderr
    assert 'pip install "neox-serve[cpu]"' in done.stderr


@pytest.mark.parametrize("arguments", [["models", "--config", "s.yaml"], ["tenant", "list", "--direct"], ["metrics"]])
def test_option_that_needs_the_server_says_so(arguments: list[str]) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 1
    assert "server" in done.stderr


def test_unreachable_gateway_is_named() -> None:
    assert "no gateway answers at 127.0.0.1:1" in invoke("models", NEOX_SERVE_GATEWAY__PORT="1").stderr


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ConnectionDefaults("127.0.0.1:50051")),
        ({"NEOX_SERVE_GATEWAY__HOST": "::1", "NEOX_SERVE_GATEWAY__PORT": "4"}, ConnectionDefaults("[::1]:4")),
        ({"NEOX_SERVE_CLIENT__API_KEY": "key"}, ConnectionDefaults("127.0.0.1:50051", "key")),
        ({"NEOX_SERVE_CLIENT__API_KEY_FILE": "/key"}, ConnectionDefaults("127.0.0.1:50051", None, Path("/key"))),
    ],
)
def test_connection_defaults_come_from_the_environment(environment: dict[str, str], expected: ConnectionDefaults) -> None:
    assert ClientInstallation(environment).connection_defaults(None) == expected


def test_connection_defaults_with_two_keys_are_refused() -> None:
    environment = {"NEOX_SERVE_CLIENT__API_KEY": "key", "NEOX_SERVE_CLIENT__API_KEY_FILE": "/key"}
    with pytest.raises(CommandError, match="only one of"):
        ClientInstallation(environment).connection_defaults(None)
