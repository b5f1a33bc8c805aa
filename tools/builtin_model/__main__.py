"""Command line of the pretraining job: one command a stage, and `all`.

Stages read and write files in a work folder, so each can be repeated, and an interrupted `train` goes on where it was.
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

app = typer.Typer(help="Train the built-in GPT-NeoX model from scratch.", no_args_is_help=True, add_completion=False)

WorkDir = Annotated[Path, typer.Option(help="Folder of downloads, corpus and checkpoints.")]
ModelDir = Annotated[Path, typer.Option(help="Folder the finished model is written to.")]
Minutes = Annotated[
    float | None,
    typer.Option(help=f"Training time over all sessions; may change on resuming. {_DEFAULT_MINUTES:.0f} by default."),
]
Steps = Annotated[int | None, typer.Option(help="Train this many steps in all instead: exactly reproducible.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, document order and block order.")]
Workers = Annotated[int, typer.Option(help="CPU cores to use, each on its own part of a batch.")]
Hardware = Annotated[str, typer.Option(help="How the model card names the machine.")]
History = Annotated[str, typer.Option(help="A sentence for the model card about how the run went.")]

_WORK = _REPOSITORY / ".cache" / "pretrain"
_MODEL = _REPOSITORY / "neox_serve" / "builtin_model"
_HARDWARE = "2 CPU cores with AVX-512 and AMX bfloat16, no GPU"


@app.command()
def corpus(work_dir: WorkDir = _WORK) -> None:
    """Gather, filter and deduplicate the training text; keep the held-out modules apart."""
    report = pipeline.make_corpus(work_dir)
    typer.echo(f"{report.documents} documents, {report.total_bytes / 1e6:.1f} MB; left out: {report.rejected}")


@app.command()
def tokenizer(work_dir: WorkDir = _WORK, seed: Seed = 0) -> None:
    """Train the tokenizer on the corpus, then encode and pack the corpus with it."""
    typer.echo(f"trained on {pipeline.make_tokenizer(work_dir)} documents")
    streams = pipeline.make_streams(work_dir, seed)
    typer.echo(f"packed {len(streams.everything):,} tokens, {len(streams.annealing):,} of them also for annealing")


@app.command()
def train(
    work_dir: WorkDir = _WORK,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = 0,
    workers: Workers = 2,
) -> None:
    """Train, or go on training; SIGTERM and Ctrl-C save and stop. The rate is annealed to zero over the budget."""
    if minutes is not None and steps is not None:
        raise typer.BadParameter("give --minutes or --steps, not both")
    seconds_s = None if steps is not None else 60.0 * (minutes or _DEFAULT_MINUTES)
    keep_freed_memory()
    folder = work_dir / "run"
    folder.mkdir(parents=True, exist_ok=True)
    trainer = start_trainer(folder / "checkpoint.pt", TrainOptions(seed=seed, workers=workers), Schedule())
    budget = Budget(steps=steps, seconds_s=seconds_s)
    finished = run_training(trainer, pipeline.read_streams(work_dir), budget, folder, stop_on_signal())
    state = "finished" if finished else "stopped before the end; run the same command to go on"
    typer.echo(f"{state}: {trainer.progress.steps} steps, {trainer.progress.tokens / 1e6:.2f} M tokens")
    if not finished:
        raise typer.Exit(code=3)


@app.command()
def export(work_dir: WorkDir = _WORK, model_dir: ModelDir = _MODEL) -> None:
    """Write the checkpoint as a model folder that transformers and vLLM load."""
    model = new_model(0)
    load_checkpoint(work_dir / "run" / "checkpoint.pt", model)
    saved_tokenizer = Tokenizer.from_file(str(work_dir / "corpus" / "tokenizer.json"))
    typer.echo(f"{export_model(model, saved_tokenizer, model_dir):,} bytes in the model folder")


@app.command()
def evaluate(work_dir: WorkDir = _WORK, model_dir: ModelDir = _MODEL, hardware: Hardware = _HARDWARE, history: History = "") -> None:
    """Measure the model folder on the held-out modules; write evaluation.json and the model card into it."""
    keep_freed_memory()
    heldout = evaluate_folder(work_dir, model_dir, hardware, history)["heldout"]
    typer.echo(f"{heldout['bits_per_byte']} bits per byte; xz -9e: {heldout['xz_bits_per_byte']}")


@app.command(name="all")
def everything(
    work_dir: WorkDir = _WORK,
    model_dir: ModelDir = _MODEL,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = 0,
) -> None:
    """All stages in order."""
    corpus(work_dir)
    tokenizer(work_dir, seed)
    train(work_dir, minutes, steps, seed)
    export(work_dir, model_dir)
    evaluate(work_dir, model_dir)


if __name__ == "__main__":
    app()
