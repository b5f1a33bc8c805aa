"""Quantises a checkpoint. `python -m deployments.jobs.quantize --help`.

The result is a folder that the cluster serves as it is (`model.source`). With it is quantization.json: sizes, bits a byte of held-out text
before and after, and how often the likeliest next token is the same.

Exit codes: 0 the checkpoint is there, 1 stopped by an error, 2 wrong arguments or files, 130 or 143 interrupted.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import AutoTokenizer, GPTNeoXForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from deployments.jobs.failures import InterruptedBySignal, JobError, raise_on_signals, usable
from deployments.jobs.pretrain.evaluate import CONTEXT_TOKENS, score_document
from deployments.jobs.quantize.arguments import QuantizeJob, parse_arguments
from deployments.jobs.quantize.calibration import quantize_layers, rounding_inputs
from deployments.jobs.quantize.checkpoint import publish, weight_bytes
from deployments.jobs.quantize.schemes import SCHEMES, Scheme
from neox_serve import model_files
from neox_serve.settings import SettingsError

_AGREEMENT_TOKENS = 16 * CONTEXT_TOKENS


def run(job: QuantizeJob, console: Console) -> Mapping[str, Any]:
    """Does the job; returns what it cost. Raises JobError."""
    folder, scheme = _folder(job), SCHEMES[job.scheme]
    calibration, held_out = _text(job.calibration), _text(job.held_out)
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sequences = _sequences(job, tokenizer, calibration, scheme, model.config.hidden_size)
    before = _measured(model, tokenizer, held_out)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{scheme.name}, matrices", total=4 * model.config.num_hidden_layers)
        stored = quantize_layers(model, sequences, scheme, lambda _name: bar.advance(task))
    with _rounding(model, scheme):
        after = _measured(model, tokenizer, held_out)
    report: dict[str, Any] = {
        "scheme": scheme.name,
        "model": job.model,
        "bits_per_byte_before": before[0],
        "bits_per_byte_after": after[0],
        "quality_fraction": before[0] / after[0],
        "greedy_agreement_fraction": float((before[1] == after[1]).float().mean()),
        "weight_bytes_before": weight_bytes(folder),
    }
    with usable(str(job.output)):
        publish(folder, job.output, scheme, stored, report)
    return {**report, "weight_bytes_after": weight_bytes(job.output)}


def _folder(job: QuantizeJob) -> Path:
    if job.output.exists():
        raise JobError(f"{job.output} is there; name another output, or remove it", 2)
    try:
        folder = model_files.locate(job.model, job.revision, setting="--model")
        model_files.read_facts(folder, setting="--model")
    except SettingsError as error:
        raise JobError(str(error), 2) from error
    return folder


def _text(file: Path) -> str:
    with usable(str(file)):
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise JobError(f"{file}: is not UTF-8: {error}", 2) from error


def _sequences(job: QuantizeJob, tokenizer: PreTrainedTokenizerBase, text: str, scheme: Scheme, hidden_size: int) -> torch.Tensor:
    """Raises JobError where there is too little text, or the groups do not fit the model."""
    if scheme.group and hidden_size % scheme.group:
        raise JobError(f"--scheme {scheme.name}: groups of {scheme.group} do not divide the model's {hidden_size}", 2)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    count = min(job.sequences, len(ids) // job.sequence_tokens)
    if count == 0:
        raise JobError(f"{job.calibration}: has {len(ids)} tokens, a sequence takes {job.sequence_tokens} (--sequence-tokens)", 2)
    return torch.tensor(ids[: count * job.sequence_tokens]).view(count, job.sequence_tokens)


def _measured(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[float, torch.Tensor]:
    """Bits a byte, and the likeliest next token after each of the first ones."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:_AGREEMENT_TOKENS]
    score = score_document(model, tokenizer, "held-out text", text)
    with torch.inference_mode():
        parts = [ids[start : start + CONTEXT_TOKENS] for start in range(0, len(ids), CONTEXT_TOKENS)]
        greedy = [model(torch.tensor([part]), use_cache=False).logits[0].argmax(-1) for part in parts]
    return score.bits_per_byte, torch.cat(greedy)


@contextmanager
def _rounding(model: GPTNeoXForCausalLM, scheme: Scheme) -> Iterator[None]:
    handles = list(rounding_inputs(model, scheme))
    yield
    for handle in handles:
        handle.remove()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; returns the exit code."""
    job, console = parse_arguments(arguments), Console(stderr=True, soft_wrap=True)
    raise_on_signals()
    try:
        report = run(job, console)
    except JobError as error:
        console.print(f"Error: {error}", markup=False, highlight=False)
        return error.exit_code
    except InterruptedBySignal as signalled:
        console.print("Stopped; nothing was written.", markup=False, highlight=False)
        return signalled.exit_code
    smaller = report["weight_bytes_before"] / report["weight_bytes_after"]
    console.print(
        f"Done: {job.output}, {smaller:.2f} times smaller; {report['bits_per_byte_before']:.4f} bits a byte before, "
        f"{report['bits_per_byte_after']:.4f} after; {report['greedy_agreement_fraction']:.1%} of likeliest tokens the same.",
        markup=False,
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
