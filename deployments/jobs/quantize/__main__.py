"""Quantizes a checkpoint. See `python -m deployments.jobs.quantize --help`.

The result is a folder that a cluster serves as it is (`model.source`). Its quantization.json has sizes, bits per byte of held-out text
before and after, how often the most likely next token is the same, and, if requested, how fast engines of both checkpoints are and how much
of their output is the same. If the run is interrupted at any point, the same command continues from the layers that are done, with the same
result.

Exit codes: 0 the checkpoint is complete, 1 stopped by an error, 2 wrong arguments or files, 130 or 143 interrupted by a signal.
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
from deployments.jobs.quantize.checkpoint import Tensors, UnfinishedCheckpoint, weight_bytes
from deployments.jobs.quantize.one_layer import OneLayerModel
from deployments.jobs.quantize.run import QuantizeRun, parse_arguments
from deployments.jobs.quantize.schemes import SCHEMES, Scheme
from deployments.jobs.quantize.texts import Texts, agreement, read_texts
from deployments.jobs.quantize.walk import walk
from deployments.jobs.reports import ReportFile
from neox_serve.core.jobs.finetune import TARGETS
from neox_serve.core.jobs.quantize import REPORT_FILE
from neox_serve.model import model_files
from neox_serve.model.facts import ModelFacts
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.settings import SettingsError
from neox_serve.settings.slices import JobEngineSettings


def run(spec: QuantizeRun, console: Console) -> Mapping[str, Any]:
    """Does the run and returns the content of the report. Raises JobError."""
    folder, facts = _model(spec, SCHEMES[spec.work.scheme])
    texts = read_texts(spec.work, Tokenizer(folder), facts.eos_token_id, facts.positions)
    fingerprint = _fingerprint(spec, folder, texts)
    if spec.output.exists():
        return _existing_report(spec, fingerprint)
    with usable(str(spec.unfinished)), file_lock(spec.unfinished, "making this checkpoint"):
        _claim(spec, fingerprint)
        unfinished = UnfinishedCheckpoint(spec.unfinished / "checkpoint", facts.layers + 1)
        report = {"fingerprint": fingerprint, **_quantize(spec, folder, facts, texts, unfinished, console)}
        unfinished.publish(spec.output, report)
        shutil.rmtree(spec.unfinished, ignore_errors=True)
    return report


def _model(spec: QuantizeRun, scheme: Scheme) -> tuple[Path, ModelFacts]:
    if is_remote(spec.work.output):
        raise JobError(f"{spec.work.output} is a URL; it must be a folder, because engines read weights from a folder", 2)
    try:
        folder = model_files.locate(spec.model, spec.revision, setting="--model")
        facts = model_files.read_facts(folder, setting="--model")
    except SettingsError as error:
        raise JobError(str(error), 2) from error
    for inputs in (facts.hidden_size, facts.intermediate_size):
        if scheme.group and inputs % scheme.group:
            raise JobError(f"--scheme {scheme.name}: the model's {inputs} inputs are not a multiple of the group size {scheme.group}", 2)
    if "quantization_config" in model_files.read_json(folder / "config.json", setting="--model"):
        raise JobError(f"--model: {spec.model} is quantized already", 2)
    return folder, facts


def _fingerprint(spec: QuantizeRun, folder: Path, texts: Texts) -> str:
    """Returns a digest that changes if the result would change."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}
    identity = json.dumps([spec.work.scheme, spec.model, spec.revision, sizes, texts.fingerprint()])
    return hashlib.sha256(identity.encode()).hexdigest()


def _existing_report(spec: QuantizeRun, fingerprint: str) -> Mapping[str, Any]:
    """Returns the report of an existing checkpoint. Raises JobError if it was made from something else."""
    try:
        report: Mapping[str, Any] = json.loads((spec.output / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = {}
    if report.get("fingerprint") != fingerprint:
        raise JobError(f"{spec.output} exists, and was not made from this; choose another output, or remove it", 2)
    return report


def _claim(spec: QuantizeRun, fingerprint: str) -> None:
    """Marks the unfinished checkpoint as this run's. Raises JobError if its layers were made from something else."""
    mark = spec.unfinished / "fingerprint"
    if mark.exists() and mark.read_text(encoding="utf-8") != fingerprint:
        raise JobError(f"{spec.unfinished} has layers that were not made from this; choose another output, or remove it", 2)
    put(str(mark.with_suffix(".new")), fingerprint.encode())
    mark.with_suffix(".new").replace(mark)


def _quantize(
    spec: QuantizeRun, folder: Path, facts: ModelFacts, texts: Texts, unfinished: UnfinishedCheckpoint, console: Console
) -> dict[str, Any]:
    """Writes all files except the report, and returns the content of the report."""
    logging.disable_progress_bar()
    tensors, scheme = Tensors(folder), SCHEMES[spec.work.scheme]
    report = ReportFile(spec.report) if spec.report else None
    with JobProgress(console, len(TARGETS) * facts.layers, 0, report=report.record if report else None, noun="matrices") as progress:

        def advance(tokens: int) -> None:
            progress.complete_row(tokens=tokens, error=False)

        measured = walk(OneLayerModel(folder, tensors), tensors, texts, scheme, unfinished, advance)
    if report:
        report.flush()
    unfinished.complete(folder, scheme)
    before, after = (cost.bits_per_byte(texts.held_out_bytes) for cost in (measured.before, measured.after))
    report_values: dict[str, Any] = {
        "scheme": scheme.name,
        "model": spec.model,
        "held_out_bytes": texts.held_out_bytes,
        "bits_per_byte_before": before,
        "bits_per_byte_after": after,
        "quality_fraction": before / after,
        "greedy_agreement_fraction": agreement(measured.before, measured.after),
        "weight_bytes_before": weight_bytes(folder),
        "weight_bytes_after": weight_bytes(unfinished.folder),
    }
    if spec.work.serve_tokens:
        report_values |= asdict(serving.compare(folder, unfinished.folder, texts, spec.work.serve_tokens, _settings(spec), console))
    return report_values


def _settings(spec: QuantizeRun) -> JobEngineSettings:
    try:
        return JobEngineSettings.load(spec.config)
    except SettingsError as error:
        raise JobError(f"--config: {error}", 2) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Does the run that the arguments describe, and returns the exit code."""
    spec, console = parse_arguments(arguments), Console(stderr=True, soft_wrap=True)
    raise_on_signals()
    try:
        report = run(spec, console)
    except JobError as error:
        if spec.report:
            ReportFile(spec.report).record_failure(str(error))
        console.print(f"Error: {error}", markup=False, highlight=False)
        return error.exit_code
    except InterruptedBySignal as signalled:
        console.print(f"Stopped; the same command continues from {spec.unfinished}.", markup=False, highlight=False)
        return signalled.exit_code
    console.print(f"Done: {spec.output}, {_summary(report)}", markup=False, highlight=False)
    return 0


def _summary(report: Mapping[str, Any]) -> str:
    smaller = report["weight_bytes_before"] / report["weight_bytes_after"]
    summary = (
        f"{smaller:.2f} times smaller; {report['bits_per_byte_before']:.4f} bits per byte before and {report['bits_per_byte_after']:.4f} "
        "after; "
        f"{report['greedy_agreement_fraction']:.1%} of the most likely tokens are the same."
    )
    if "tokens_per_s_before" in report:
        faster = report["tokens_per_s_after"] / report["tokens_per_s_before"]
        summary += f" Served: {faster:.2f} times as fast, {report['generated_agreement_fraction']:.1%} of the output is the same."
    return summary


if __name__ == "__main__":
    sys.exit(main())
