"""The client's distribution, built and installed in a fresh virtual environment: what a tenant has."""

import asyncio
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fakes.whole_path import whole_path
from tools.build_wheels import ROOT, build_client, client_contents

SERVER_PACKAGES = ("ray", "vllm", "torch", "transformers", "pydantic", "cluster", "deployments", "neox_serve.settings")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheels")
    build_client(out)
    (wheel,) = out.iterdir()
    return wheel


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executables of an environment that has the client and what it depends on, from the registry."""
    environment = tmp_path_factory.mktemp("client") / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run([environment / "bin" / "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile", wheel], check=True)
    return environment / "bin"


def run(bin_folder: Path, program: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program of the environment, outside the repository."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(bin_folder), "COLUMNS": "200", **variables}
    command = [str(bin_folder / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=bin_folder, env=variables, check=False)


def test_wheel_contains_only_the_package_neox_serve(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"neox_serve", "neox_serve_client"}
    assert "neox_serve/py.typed" in names
    assert not [name for name in names if "/internal/" in name or "/gateway/" in name]


def test_environment_has_nothing_of_the_server(bin_folder: Path) -> None:
    code = "import importlib.util as u, sys; print([name for name in sys.argv[1:] if u.find_spec(name)])"
    assert run(bin_folder, "python", "-c", code, *SERVER_PACKAGES).stdout == "[]\n"


def test_every_module_of_the_distribution_can_be_imported(bin_folder: Path) -> None:
    code = """
import importlib, pkgutil, neox_serve
for module in pkgutil.walk_packages(neox_serve.__path__, "neox_serve."):
    importlib.import_module(module.name)
"""
    done = run(bin_folder, "python", "-W", "error", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_lists_commands_and_says_which_need_the_server(bin_folder: Path) -> None:
    done = run(bin_folder, "neox-serve", "--help")
    assert done.returncode == 0
    for command in ("generate", "embed", "score", "classify", "tokenize", "estimate", "models", "status", "tenant", "usage", "job", "top"):
        assert f" {command} " in done.stdout
    assert "Needs the server: `pip install neox-serve`." in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["up", "--set", "gateway.port=1"], ["config", "show"], ["tenant", "list", "--direct"], ["models", "--config", "settings.yaml"]],
    ids=" ".join,
)
def test_what_needs_the_server_names_the_distribution_to_install(bin_folder: Path, arguments: list[str]) -> None:
    done = run(bin_folder, "neox-serve", *arguments)
    assert done.returncode == 1
    assert 'pip install "neox-serve[cpu]"' in done.stderr
    assert "Traceback" not in done.stderr


async def test_commands_and_client_call_a_gateway(bin_folder: Path) -> None:
    code = "import sys\nfrom neox_serve.client import Client\nwith Client(sys.argv[1]) as client: print(client.embed('hi').vectors.shape)"
    async with whole_path() as path:
        port = str(path.server.port)
        generated, status, client = await asyncio.gather(
            asyncio.to_thread(run, bin_folder, "neox-serve", "generate", "hello", "--max-tokens", "4", NEOX_SERVE_GATEWAY__PORT=port),
            asyncio.to_thread(run, bin_folder, "neox-serve", "status", "--address", f"127.0.0.1:{port}"),
            asyncio.to_thread(run, bin_folder, "python", "-c", code, f"127.0.0.1:{port}"),
        )
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.strip()
    assert "replica" in status.stdout
    assert client.stdout.startswith("(1, "), client.stderr


def test_sources_suit_python_3_10() -> None:
    """mypy knows which Python has which syntax and which names in the standard library."""
    sources = [name for name in client_contents() if name.startswith("neox_serve/") and not name.endswith(("py.typed", "v1"))]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-version", "3.10", *sources], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
