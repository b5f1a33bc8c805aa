"""The checked-in protobuf code is what the .proto files generate."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GENERATED = ("neox_serve/v1", "neox_serve/internal/v1")


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with code generated from the .proto files by the command of `make protos`."""
    folder = tmp_path_factory.mktemp("protos")
    subprocess.run(["make", "--silent", "generate-protos", f"OUT={folder}", f"BIN={Path(sys.executable).parent}"], cwd=ROOT, check=True)
    return folder


def modules(folder: Path) -> dict[str, str]:
    """Text of the generated files below a folder, by relative path."""
    paths = [path for package in GENERATED for path in sorted((folder / package).glob("*_pb2*.py*"))]
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


def test_generated_code_is_fresh(regenerated: Path) -> None:
    assert modules(ROOT).keys() == modules(regenerated).keys()
    stale = [name for name, text in modules(ROOT).items() if text != modules(regenerated)[name]]
    assert not stale, f"run `make protos`: {stale}"
