"""The metadata of the client's distribution."""

import re
import tomllib
from pathlib import Path

import pytest

from neox_serve import __version__
from tools.build_wheels import CLIENT_PACKAGE, ROOT, client_contents

SERVER, CLIENT = ROOT / "pyproject.toml", CLIENT_PACKAGE / "pyproject.toml"


def minimum(pyproject: Path, name: str) -> tuple[int, ...]:
    """The lowest version of a dependency that a distribution accepts."""
    dependencies = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    (version,) = (found[1] for each in dependencies if (found := re.match(rf"{name}>=([\d.]+)", each)))
    return tuple(map(int, version.split(".")))


def generated_with() -> dict[str, tuple[int, ...]]:
    """The lowest versions of grpcio and protobuf that the generated code runs with."""
    messages = (ROOT / "neox_serve/v1/generation_pb2.py").read_text(encoding="utf-8")
    services = (ROOT / "neox_serve/v1/token_service_pb2_grpc.py").read_text(encoding="utf-8")
    protobuf, grpcio = re.search(r"# Protobuf Python Version: ([\d.]+)", messages), re.search(r"GENERATED_VERSION = '([\d.]+)'", services)
    assert protobuf
    assert grpcio
    return {"protobuf": tuple(map(int, protobuf[1].split("."))), "grpcio": tuple(map(int, grpcio[1].split(".")))}


@pytest.mark.parametrize("pyproject", [SERVER, CLIENT], ids=["server", "client"])
def test_grpcio_and_protobuf_are_at_least_as_new_as_the_generated_code(pyproject: Path) -> None:
    assert {name: minimum(pyproject, name) for name in ("grpcio", "protobuf")} == generated_with()


def test_client_contents_exist() -> None:
    assert [name for name in client_contents() if not (ROOT / name).exists()] == []


def test_both_distributions_have_one_version() -> None:
    assert tomllib.loads(SERVER.read_text(encoding="utf-8"))["project"]["version"] == __version__
