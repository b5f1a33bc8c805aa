"""Trains a LoRA adapter on examples. See `python -m deployments.jobs.finetune --help`; rows are described in `examples`.

Every line of the input is checked before training starts. If the run is interrupted at any point, the same command continues from its last
checkpoint and ends with the same weights. Once training has ended, the adapter is in the registry, where a running cluster finds it within
a second.

Exit codes: 0 the adapter is published, 1 stopped by an error, 2 wrong arguments or bad rows, 130 or 143 interrupted by a signal.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from transformers import GPTNeoXForCausalLM
from transformers.utils import logging

from deployments.jobs.bulk.rows import BadRow
from deployments.jobs.failures import InterruptedBySignal, JobError, raise_on_signals, reject_bad_rows, usable
from deployments.jobs.file_lock import file_lock
from deployments.jobs.finetune.adapter import adapted, publish, published_fingerprint, restore, weights_of
from deployments.jobs.finetune.checkpoint import TrainingState
from deployments.jobs.finetune.examples import Example, Reader
from deployments.jobs.finetune.packing import pack
from deployments.jobs.finetune.run import FinetuneRun, parse_arguments
from deployments.jobs.finetune.training import Data, Share, Training, shaping_options
from deployments.jobs.finetune.workers import train_together
from deployments.jobs.progress import JobProgress
from deployments.jobs.reports import ReportFile
from neox_serve.model import model_files
from neox_serve.model.chat import DEFAULT_TEMPLATE, read_template
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.settings import SettingsError


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known before training starts."""

    folder: Path
    """Folder of the model."""
    template: str
    """Chat template, which is saved with the adapter."""
    examples: Sequence[Example]
    """The good rows of the input."""
    fingerprint: str
    """Identifies the examples and the options."""


def survey(spec: FinetuneRun) -> Survey:
    """Reads the model's facts and every example. Raises JobError if they cannot be used."""
    try:
        folder = model_files.locate(spec.model, spec.revision, setting="--model")
        facts = model_files.read_facts(folder, setting="--model")
    except SettingsError as error:
        raise JobError(str(error), 2) from error
    tokenizer, template = Tokenizer(folder), read_template(folder) or DEFAULT_TEMPLATE
    reader = Reader(tokenizer.encode, template, tokenizer.decode([facts.eos_token_id]), facts.positions)
    with usable(spec.work.input):
        rows = list(reader.read(spec.work.input))
    examples = [row for row in rows if isinstance(row, Example)]
    reject_bad_rows(spec.work.input, [row for row in rows if isinstance(row, BadRow)], len(examples), spec.work.rejects)
    if len(examples) < 2:
        raise JobError(f"{spec.work.input}: has {len(examples)} examples; at least 2 are needed", 2)
    shaping = json.dumps([shaping_options(spec.work), template, [example.token_ids for example in examples]], sort_keys=True)
    fingerprint = hashlib.sha256(shaping.encode()).hexdigest()
    if spec.output.exists() and published_fingerprint(spec.output) != fingerprint:
        raise JobError(
            f"{spec.output} exists, from a training with other examples or options; choose another adapter name, or remove it", 2
        )
    return Survey(folder, template, examples, fingerprint)


def data_of(found: Survey, spec: FinetuneRun, padding_id: int) -> Data:
    """Splits the examples by the seed into training and evaluation, and packs them."""
    order = np.random.default_rng(spec.work.seed).permutation(len(found.examples)).tolist()
    held_out = round(spec.work.evaluation_fraction * len(order))
    training, evaluation = order[held_out:], order[:held_out]
    return Data(
        pack([found.examples[index] for index in training], padding_id),
        pack([found.examples[index] for index in evaluation], padding_id) if evaluation else None,
    )


def train(spec: FinetuneRun, found: Survey, share: Share, console: Console) -> None:
    """Trains to the end; the first process publishes the adapter. Raises JobError or OSError."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    logging.disable_progress_bar()
    base = GPTNeoXForCausalLM.from_pretrained(found.folder, dtype=dtype)
    model = adapted(base, spec.work, spec.model).to(device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    data = data_of(found, spec, base.config.pad_token_id or 0)
    report = ReportFile(spec.report) if spec.report and share.rank == 0 else None
    total = data.training.examples() * spec.work.epochs
    with JobProgress(console, total, 0, report=report.record if report else None, noun="examples") as progress:
        before: list[int] = []

        def on_step(state: TrainingState) -> None:
            """Reports all examples, and the tokens of this run only."""
            before[:] = before or [state.tokens]
            progress.update(state.examples, tokens=state.tokens - before[0])

        run = Training(
            spec.work,
            model,
            device,
            parameters,
            lambda: weights_of(model),
            lambda weights: restore(model, weights),
            spec.unfinished / "checkpoint",
            found.fingerprint,
            on_step,
            share,
        )
        state = run.run(data)
    if report:
        report.flush()
    if share.rank == 0:
        publish(
            model, spec.work, state, found.fingerprint, template=found.template, temporary=spec.unfinished / "whole", output=spec.output
        )


def run(spec: FinetuneRun, console: Console) -> None:
    """Does the run. Raises JobError."""
    found = survey(spec)
    with usable(str(spec.unfinished)), file_lock(spec.unfinished, "training this adapter"):
        if spec.output.exists():
            console.print(f"{spec.output} exists already, from this training", markup=False, highlight=False)
        elif spec.work.workers == 1:
            train(spec, found, Share(), console)
        else:
            absolute = replace(spec, report=spec.report.absolute() if spec.report else None, registry=spec.registry.absolute())
            train_together(
                lambda share: train(absolute, found, share, Console(stderr=True, soft_wrap=True)),
                spec.work.workers,
                folder=spec.unfinished,
                ray_address=spec.ray_address,
            )
    shutil.rmtree(spec.unfinished, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Does the run that the arguments describe, and returns the exit code."""
    spec, console = parse_arguments(arguments), Console(stderr=True, soft_wrap=True)
    raise_on_signals()
    try:
        run(spec, console)
    except JobError as error:
        if spec.report:
            ReportFile(spec.report).record_failure(str(error))
        console.print(f"Error: {error}", markup=False, highlight=False)
        return error.exit_code
    except InterruptedBySignal as signalled:
        console.print(f"Stopped; the same command continues from {spec.unfinished}.", markup=False, highlight=False)
        return signalled.exit_code
    console.print(f"Done: adapter {spec.work.adapter} is in {spec.output}.", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
