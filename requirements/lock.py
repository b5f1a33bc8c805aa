"""Prints the lock file of an environment as pip resolves it now: `lock.py cpu` for development and CPUs, `lock.py gpu` for images."""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADERS = {
    "cpu": """\
# The complete environment without a GPU. `make lock` writes this file, and requirements/install.py installs it with --no-deps.
# torchvision, torchaudio and torchcodec are left out: a text model needs none of them, and they break `import transformers` beside
# torch's CPU build.
""",
    "gpu": """\
# Constraints for the environment with GPUs. `make lock` writes this file, and infra/images/Dockerfile.gpu installs vllm under it. It has
# everything but the CUDA libraries of torch's GPU build, whose versions torch pins itself.
""",
}
EXTRAS = {"cpu": ("cpu", "dev"), "gpu": ("gpu", "evaluate", "finetune", "s3", "vectors")}
LEFT_OUT = {"cpu": {"pip", "torchaudio", "torchcodec", "torchvision", "wheel"}, "gpu": {"pip", "wheel"}}


def resolve(requirements: list[str]) -> dict[str, str]:
    """Returns the version of every distribution that pip would install for the requirements, by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([*pip, *requirements], check=True, stdout=sys.stderr)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    metadata = [install["metadata"] for install in installs]
    return {entry["name"].lower().replace("_", "-"): entry["version"].split("+")[0] for entry in metadata}


def main() -> None:
    """Prints the lock file of the environment that the argument names."""
    environment = sys.argv[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    optional = project["project"]["optional-dependencies"]
    extras = [requirement for extra in EXTRAS[environment] for requirement in optional[extra]]
    versions = resolve([*project["project"]["dependencies"], *extras, *project["build-system"]["requires"]])
    lines = [f"{name}=={version}" for name, version in sorted(versions.items()) if name not in LEFT_OUT[environment]]
    sys.stdout.write(HEADERS[environment] + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
