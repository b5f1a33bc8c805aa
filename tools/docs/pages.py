"""The generated files of docs/reference, by name."""

from pathlib import Path

from cluster.cli import app
from neox_serve.settings import Settings
from tools.docs.commands import render_commands
from tools.docs.configuration import render_configuration, render_schema
from tools.docs.protocol import load_descriptors, render_protocol

ROOT = Path(__file__).parents[2]

_PUBLIC_INTRODUCTION = """\
The public gRPC API, package `neox_serve.v1`. The `.proto` files are in the repository's `protos/neox_serve/v1`, and a running gateway
serves them by reflection. [Clients in Python, Node and other languages](../tenant/clients.md) shows how to call it.
"""
_INTERNAL_INTRODUCTION = """\
The messages between gateways, router and engine replicas, package `neox_serve.internal.v1`. They are not an interface for clients and may
change with every version. [The life of a request](../developer/request.md) shows where each is used.
"""


def reference() -> dict[str, str]:
    """Text of every generated file, by its name in docs/reference."""
    return {
        "configuration.md": render_configuration(Settings),
        "settings.schema.json": render_schema(Settings),
        "api.md": render_protocol(load_descriptors(ROOT / "protos"), "neox_serve.v1", "API reference", _PUBLIC_INTRODUCTION),
        "internal-api.md": render_protocol(
            load_descriptors(ROOT / "protos"), "neox_serve.internal.v1", "Internal links reference", _INTERNAL_INTRODUCTION
        ),
        "cli.md": render_commands(app),
    }
