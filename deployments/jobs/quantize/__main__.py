"""Quantises a checkpoint. `python -m deployments.jobs.quantize --help`.

The result is a folder that the cluster serves as it is (`model.source`). With it is quantization.json: sizes, bits a byte of held-out text
before and after, how often the likeliest next token is the same, and, where that is asked for, how fast engines of both are and how much of
what they say is the same. Stopped at any point, the same command goes on from the layers that are done, to the same checkpoint.

Exit codes: 0 the checkpoint is there, 1 stopped by an error, 2 wrong arguments or files, 130 or 143 interrupted.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils import logging

from deployments.jobs.failures import InterruptedBySignal, JobError, raise_on_signals, usable
from deployments.jobs.file_lock import file_lock
from deployments.jobs.files.storage import is_remote, put
from deployments.jobs.progress import JobProgress
from deployments.jobs.quantize import serving
from deployments.jobs.quantize.checkpoint import REPORT, Growing, Tensors, weight_bytes
from deployments.jobs.quantize.one_layer import OneLayerModel
from deployments.jobs.quantize.run import QuantizeRun, parse_arguments
from deployments.jobs.quantize.schemes import SCHEMES, Scheme
from deployments.jobs.quantize.texts import Texts, agreement, read_texts
from deployments.jobs.quantize.walk import walk
from deployments.jobs.reports import ReportFile
from neox_serve.core.jobs.finetune import TARGETS
from neox_serve.model import model_files
from neox_serve.model.facts import ModelFacts
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.settings import SettingsError
from neox_serve.settings.slices import JobEngineSettings


def run(job: QuantizeRun, console: Console) -> Mapping[str, Any]:
    """Does the job; returns what it cost. Raises JobError."""
    folder, facts = _model(job, SCHEMES[job.work.scheme])
    texts = read_texts(job.work, Tokenizer(folder), facts.eos_token_id, facts.positions)
    fingerprint = _fingerprint(job, folder, texts)
    if job.output.exists():
        return _made_before(job, fingerprint)
    with usable(str(job.unfinished)), file_lock(job.unfinished, "making this checkpoint"):
        _claim(job, fingerprint)
        growing = Growing(job.unfinished / "whole", facts.layers + 1)
        report = {"fingerprint": fingerprint, **_made(job, folder, facts, texts, growing, console)}
        growing.publish(job.output, report)
        shutil.rmtree(job.unfinished, ignore_errors=True)
    return report


def _model(job: QuantizeRun, scheme: Scheme) -> tuple[Path, ModelFacts]:
    if is_remote(job.work.output):
        raise JobError(f"{job.work.output}: must be a folder, since engines read weights from one; got a URL", 2)
    try:
        folder = model_files.locate(job.model, job.revision, setting="--model")
        facts = model_files.read_facts(folder, setting="--model")
    except SettingsError as error:
        raise JobError(str(error), 2) from error
    for inputs in (facts.hidden_size, facts.intermediate_size):
        if scheme.group and inputs % scheme.group:
            raise JobError(f"--scheme {scheme.name}: groups of {scheme.group} do not divide the model's {inputs}", 2)
    if "quantization_config" in model_files.read_json(folder / "config.json", setting="--model"):
        raise JobError(f"--model: {job.model} is quantised already", 2)
    return folder, facts


def _fingerprint(job: QuantizeRun, folder: Path, texts: Texts) -> str:
    """Another one, where the result would be another one."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}
    told = json.dumps([job.work.scheme, job.model, job.revision, sizes, texts.fingerprint()])
    return hashlib.sha256(told.encode()).hexdigest()


def _made_before(job: QuantizeRun, fingerprint: str) -> Mapping[str, Any]:
    """What it cost then. Raises JobError where what is there is something else."""
    try:
        report: Mapping[str, Any] = json.loads((job.output / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = {}
    if report.get("fingerprint") != fingerprint:
        raise JobError(f"{job.output} is there, and was not made from this; name another output, or remove it", 2)
    return report


def _claim(job: QuantizeRun, fingerprint: str) -> None:
    """Raises JobError where the layers that are there were made from something else."""
    mark = job.unfinished / "fingerprint"
    if mark.exists() and mark.read_text(encoding="utf-8") != fingerprint:
        raise JobError(f"{job.unfinished}: has layers that were not made from this; name another output, or remove it", 2)
    put(str(mark.with_suffix(".aside")), fingerprint.encode())
    mark.with_suffix(".aside").replace(mark)


def _made(job: QuantizeRun, folder: Path, facts: ModelFacts, texts: Texts, growing: Growing, console: Console) -> dict[str, Any]:
    """Makes all files but the report; returns what is in that."""
    logging.disable_progress_bar()
    tensors, scheme = Tensors(folder), SCHEMES[job.work.scheme]
    report = ReportFile(job.report) if job.report else None
    with JobProgress(console, len(TARGETS) * facts.layers, 0, report=report.record if report else None, noun="matrices") as progress:

        def advance(tokens: int) -> None:
            progress.complete_row(tokens=tokens, error=False)

        measured = walk(OneLayerModel(folder, tensors), tensors, texts, scheme, growing, advance)
    if report:
        report.flush()
    growing.complete(folder, scheme)
    before, after = (cost.bits_per_byte(texts.held_out_bytes) for cost in (measured.before, measured.after))
    found: dict[str, Any] = {
        "scheme": scheme.name,
        "model": job.model,
        "held_out_bytes": texts.held_out_bytes,
        "bits_per_byte_before": before,
        "bits_per_byte_after": after,
        "quality_fraction": before / after,
        "greedy_agreement_fraction": agreement(measured.before, measured.after),
        "weight_bytes_before": weight_bytes(folder),
        "weight_bytes_after": weight_bytes(growing.folder),
    }
    if job.work.serve_tokens:
        found |= asdict(serving.compare(folder, growing.folder, texts, job.work.serve_tokens, _settings(job), console))
    return found


def _settings(job: QuantizeRun) -> JobEngineSettings:
    try:
        return JobEngineSettings.load(job.config)
    except SettingsError as error:
        raise JobError(f"--config: {error}", 2) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; returns the exit code."""
    job, console = parse_arguments(arguments), Console(stderr=True, soft_wrap=True)
    raise_on_signals()
    try:
        report = run(job, console)
    except JobError as error:
        if job.report:
            ReportFile(job.report).record_failure(str(error))
        console.print(f"Error: {error}", markup=False, highlight=False)
        return error.exit_code
    except InterruptedBySignal as signalled:
        console.print(f"Stopped; the same command goes on from {job.unfinished}.", markup=False, highlight=False)
        return signalled.exit_code
    console.print(f"Done: {job.output}, {_summary(report)}", markup=False, highlight=False)
    return 0


def _summary(report: Mapping[str, Any]) -> str:
    smaller = report["weight_bytes_before"] / report["weight_bytes_after"]
    said = (
        f"{smaller:.2f} times smaller; {report['bits_per_byte_before']:.4f} bits a byte before, {report['bits_per_byte_after']:.4f} after; "
        f"{report['greedy_agreement_fraction']:.1%} of likeliest tokens the same."
    )
    if "tokens_per_s_before" in report:
        faster = report["tokens_per_s_after"] / report["tokens_per_s_before"]
        said += f" Served: {faster:.2f} times as fast, {report['generated_agreement_fraction']:.1%} of what is said the same."
    return said


if __name__ == "__main__":
    sys.exit(main())
