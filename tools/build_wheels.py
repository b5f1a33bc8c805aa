"""Builds the wheels of the two distributions: `python -m tools.build_wheels --out dist`.

`neox-serve-client` is a part of the repository, listed in infra/packages/client/pyproject.toml; `neox-serve` is all of it.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLIENT_PACKAGE = ROOT / "infra" / "packages" / "client"
_SERVER_CONTENTS = ("LICENSE", "README.md", "pyproject.toml", "autoscaling", "cluster", "deployments", "neox_serve")


def client_contents() -> list[str]:
    """Files and folders, relative to the repository, that the client's distribution contains."""
    metadata = tomllib.loads((CLIENT_PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    contents: list[str] = metadata["tool"]["neox-serve"]["contents"]
    return contents


def build_client(out: Path) -> None:
    """Builds the client's wheel into a folder."""
    with tempfile.TemporaryDirectory() as staging:
        _copy(client_contents(), Path(staging))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(CLIENT_PACKAGE / name, staging)
        _build(Path(staging), out)


def build_server(out: Path) -> None:
    """Builds the server's wheel into a folder."""
    with tempfile.TemporaryDirectory() as staging:
        _copy(_SERVER_CONTENTS, Path(staging))
        _build(Path(staging), out)


def _copy(names: list[str] | tuple[str, ...], staging: Path) -> None:
    for name in names:
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)


def _build(staging: Path, out: Path) -> None:
    """Uses the setuptools of this environment, so that nothing is downloaded."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(staging)], check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the wheels of neox-serve and neox-serve-client.")
    parser.add_argument("--only", choices=["client", "server"], help="build one of the two distributions (default: both)")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the wheels (default: dist)")
    arguments = parser.parse_args()
    if arguments.only != "server":
        build_client(arguments.out)
    if arguments.only != "client":
        build_server(arguments.out)


if __name__ == "__main__":
    main()
