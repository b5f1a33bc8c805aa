"""The command in processes of its own: what a run imports, shell completion, and stopping a cluster that does not run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = {"ray", "vllm", "torch", "transformers", "grpc", "numpy", "yaml", "neox_serve.settings", "neox_serve.client"}


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The installed command in a process of its own."""
    command = [str(Path(sys.executable).parent / "neox-serve"), *filter(None, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment, check=False)


def imported_by(*arguments: str) -> set[str]:
    """The modules that a run of the command leaves loaded."""
    code = (
        "import sys\nsys.argv = ['neox-serve', *sys.argv[1:]]\nfrom cluster.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('LOADED', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["bench", "--help"], ["job", "submit", "generate", "--help"]])
def test_help_loads_nothing_slow(arguments: list[str]) -> None:
    assert not imported_by(*arguments) & SLOW


def test_call_of_a_gateway_loads_neither_ray_nor_an_engine() -> None:
    assert not imported_by("generate", "hi", "--address", "127.0.0.1:1", "--timeout", "5") & {"ray", "vllm", "torch", "transformers"}


@pytest.mark.parametrize(("words", "offered"), [("neox-serve gen", "generate"), ("neox-serve generate x --trunc", "--truncation")])
def test_completion_offers_commands_and_options(words: str, offered: str) -> None:
    environment = {"_NEOX_SERVE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    assert offered in run("", **environment).stdout.split()


def test_down_without_a_cluster_says_so(tmp_path: Path) -> None:
    done = run("down", NEOX_SERVE_STATE_FOLDER=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "No cluster runs here.\n")
