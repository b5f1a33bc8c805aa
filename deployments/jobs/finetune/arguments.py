"""The command line of a fine-tuning job. Without torch: who only starts a job need not wait for it."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from neox_serve.core.jobs.finetune import TARGETS, FinetuneWork

_FILES = ("input", "adapter", "rejects")
_HELP = {
    "rank": "of the matrices that are added",
    "alpha": "their product is scaled by alpha / rank",
    "targets": f"matrices of each layer that get them, of {','.join(TARGETS)}",
    "epochs": "times that every example is seen, at most",
    "learning_rate": "at its highest, after a twentieth of the steps",
    "batch_tokens": "about so many tokens an optimizer step",
    "evaluation_fraction": "of the examples, kept out of training",
    "early_stop_epochs": "epochs in a row without a smaller evaluation loss that end the training; 0: none do",
    "seed": "of the order of examples and of the first weights",
    "workers": "processes that train together, by Ray Train",
}


@dataclass(frozen=True, slots=True)
class FinetuneJob:
    """What to do. model: "builtin", a folder or a hub name. registry: folder that gets a folder of the adapter's name.

    report: file in which it says how far it is; None where nobody asks. ray_address: of the Ray cluster that several workers run in;
    "local" starts one here.
    """

    work: FinetuneWork
    model: str
    registry: Path
    revision: str | None = None
    report: Path | None = None
    ray_address: str = "local"

    @property
    def output(self) -> Path:
        """The adapter's folder, there once it is whole."""
        return self.registry / self.work.adapter

    @property
    def unfinished(self) -> Path:
        """What there is of it before: checkpoints, and what went wrong."""
        return unfinished_of(self.output)


def unfinished_of(output: Path) -> Path:
    """Where an adapter grows before it is published."""
    return output.with_name(f".{output.name}.partial")


def parse_arguments(arguments: Sequence[str] | None = None) -> FinetuneJob:
    """The job that the arguments describe; wrong ones exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m deployments.jobs.finetune", description="Trains a LoRA adapter on examples.")
    parser.add_argument("--input", required=True, help='JSONL: {"prompt": ..., "completion": ...} or {"messages": [...]} a line')
    parser.add_argument("--adapter", required=True, help="its name: of its folder in the registry, and in requests")
    parser.add_argument("--registry", required=True, type=Path, help="folder of adapters that the cluster serves (model.registry)")
    parser.add_argument("--model", default="builtin", help="what is fine-tuned: builtin, a folder or a hub name (model.source)")
    parser.add_argument("--revision", help="of a model on the hub")
    parser.add_argument("--rejects", default="", help="file for bad rows; without it they stop the job before it starts")
    parser.add_argument("--report", type=Path, help="file that says how far the job is, and why it gave up")
    parser.add_argument("--ray-address", default="local", help="Ray cluster of several workers: auto, or local, which starts one here")
    for field in _options():
        default = ",".join(TARGETS) if field.name == "targets" else field.default
        kind = _targets if field.name == "targets" else type(field.default)
        text = f"{_HELP[field.name]} (default {default})"
        parser.add_argument(_flag(field.name), type=kind, default=field.default, help=text)
    values = vars(parser.parse_args(arguments))
    work = FinetuneWork(**{field.name: values.pop(field.name) for field in fields(FinetuneWork)})
    for name, value, allowed in work.problems():
        parser.error(f"argument {_flag(name)}: got {value!r}, must be {allowed}")
    return FinetuneJob(work, **values)


def arguments_of(job: FinetuneJob) -> list[str]:
    """The arguments that describe the job, from which `parse_arguments` makes it again."""
    work = job.work
    arguments = ["--input", work.input, "--adapter", work.adapter, "--registry", str(job.registry), "--model", job.model]
    arguments += ["--revision", job.revision] if job.revision else []
    arguments += ["--rejects", work.rejects] if work.rejects else []
    arguments += ["--report", str(job.report)] if job.report else []
    arguments += ["--ray-address", job.ray_address] if job.ray_address != "local" else []
    for field in _options():
        value = getattr(work, field.name)
        if value != field.default:
            arguments += [_flag(field.name), ",".join(value) if field.name == "targets" else str(value)]
    return arguments


def entrypoint_of(job: FinetuneJob) -> str:
    """The command line that does the job, with this interpreter."""
    return shlex.join([sys.executable, "-m", "deployments.jobs.finetune", *arguments_of(job)])


def _options() -> list[Field[Any]]:
    return [field for field in fields(FinetuneWork) if field.name not in _FILES]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _targets(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
