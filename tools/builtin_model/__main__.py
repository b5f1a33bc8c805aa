"""Command line of the tool: one command for each stage, and `all`.

Stages read and write files in a work folder. Each stage can therefore be repeated, and an interrupted `train` continues where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer
from tokenizers import Tokenizer

from tools.builtin_model import pipeline
from tools.builtin_model.checkpoint import load_checkpoint
from tools.builtin_model.export import export_model
from tools.builtin_model.model import new_model
from tools.builtin_model.report import evaluate_folder
from tools.builtin_model.schedule import Budget, Schedule
from tools.builtin_model.train import (
    TrainOptions,
    keep_freed_memory,
    run_training,
    start_trainer,
    stop_on_signal,
)

_REPOSITORY = Path(__file__).resolve().parents[2]
_DEFAULT_MINUTES = 75.0

app = typer.Typer(
    help="Train the built-in GPT-NeoX model from scratch. This is a tool for developers; it runs on this machine, without a cluster.",
    no_args_is_help=True,
    add_completion=False,
)

WorkDir = Annotated[Path, typer.Option(help="Folder for downloads, the corpus and checkpoints.")]
ModelDir = Annotated[Path, typer.Option(help="Folder to which the finished model is written.")]
Minutes = Annotated[
    float | None,
    typer.Option(help=f"Total training time over all sessions (default: {_DEFAULT_MINUTES:.0f}). A resumed run may have another value."),
]
Steps = Annotated[int | None, typer.Option(help="Total number of steps instead of a training time. Such a run is exactly reproducible.")]
Seed = Annotated[int, typer.Option(help="Seed of the initial weights, the document order and the block order.")]
Workers = Annotated[int, typer.Option(help="Number of CPU cores. Each computes its own part of a batch.")]
Hardware = Annotated[str, typer.Option(help="Description of the machine for the model card.")]
History = Annotated[str, typer.Option(help="A sentence about the training run for the model card.")]

_WORK = _REPOSITORY / ".cache" / "builtin_model"
_MODEL = _REPOSITORY / "neox_serve" / "builtin_model"
_HARDWARE = "2 CPU cores with AVX-512 and AMX bfloat16, no GPU"


@app.command()
def corpus(work_dir: WorkDir = _WORK) -> None:
    """Collect, filter and deduplicate the training text, and separate the held-out modules."""
    report = pipeline.make_corpus(work_dir)
    typer.echo(f"{report.documents} documents, {report.total_bytes / 1e6:.1f} MB; rejected: {report.rejected}")


@app.command()
def tokenizer(work_dir: WorkDir = _WORK, seed: Seed = 0) -> None:
    """Train the tokenizer on the corpus, then encode and pack the corpus."""
    typer.echo(f"trained the tokenizer on {pipeline.make_tokenizer(work_dir)} documents")
    streams = pipeline.make_streams(work_dir, seed)
    typer.echo(f"packed {len(streams.everything):,} tokens, {len(streams.annealing):,} of which are used for annealing")


@app.command()
def train(
    work_dir: WorkDir = _WORK,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = 0,
    workers: Workers = 2,
) -> None:
    """Start or resume training. The learning rate is annealed to zero over the budget.

    SIGTERM and Ctrl-C save a checkpoint and stop. The exit code is 3 if training stopped before the end.
    """
    if minutes is not None and steps is not None:
        raise typer.BadParameter("--minutes and --steps cannot be combined")
    seconds_s = None if steps is not None else 60.0 * (minutes or _DEFAULT_MINUTES)
    keep_freed_memory()
    folder = work_dir / "run"
    folder.mkdir(parents=True, exist_ok=True)
    trainer = start_trainer(folder / "checkpoint.pt", TrainOptions(seed=seed, workers=workers), Schedule())
    budget = Budget(steps=steps, seconds_s=seconds_s)
    finished = run_training(trainer, pipeline.read_streams(work_dir), budget, folder, stop_on_signal())
    state = "finished" if finished else "stopped before the end; run the same command again to resume"
    typer.echo(f"{state}: {trainer.progress.steps} steps, {trainer.progress.tokens / 1e6:.2f} M tokens")
    if not finished:
        raise typer.Exit(code=3)


@app.command()
def export(work_dir: WorkDir = _WORK, model_dir: ModelDir = _MODEL) -> None:
    """Convert the checkpoint to a model folder that transformers and vLLM can load."""
    model = new_model(0)
    load_checkpoint(work_dir / "run" / "checkpoint.pt", model)
    saved_tokenizer = Tokenizer.from_file(str(work_dir / "corpus" / "tokenizer.json"))
    typer.echo(f"wrote {export_model(model, saved_tokenizer, model_dir):,} bytes to the model folder")


@app.command()
def evaluate(work_dir: WorkDir = _WORK, model_dir: ModelDir = _MODEL, hardware: Hardware = _HARDWARE, history: History = "") -> None:
    """Evaluate the model folder on the held-out modules, and write evaluation.json and the model card to it."""
    keep_freed_memory()
    heldout = evaluate_folder(work_dir, model_dir, hardware, history)["heldout"]
    typer.echo(f"{heldout['bits_per_byte']} bits per byte (xz -9e: {heldout['xz_bits_per_byte']})")


@app.command(name="all")
def everything(
    work_dir: WorkDir = _WORK,
    model_dir: ModelDir = _MODEL,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = 0,
) -> None:
    """Run all stages in order."""
    corpus(work_dir)
    tokenizer(work_dir, seed)
    train(work_dir, minutes, steps, seed)
    export(work_dir, model_dir)
    evaluate(work_dir, model_dir)


if __name__ == "__main__":
    app()
