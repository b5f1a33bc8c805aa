"""The LoRA adapter: added to the model before training, published after it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import GPTNeoXForCausalLM

from deployments.jobs.finetune.checkpoint import TrainingState, Weights
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.model.chat import TEMPLATE_FILE

METRICS, PLOT, CARD = "metrics.jsonl", "loss.svg", "training.json"
"""Files in an adapter's folder: the losses, a plot of them, and a summary of the training."""
_FINGERPRINT = "fingerprint"


def adapted(model: GPTNeoXForCausalLM, work: FinetuneWork, base: str) -> peft.PeftModel:
    """Returns the model with a new adapter, which does not change it yet. `base` is the model's name, which the adapter records."""
    torch.manual_seed(work.seed)
    model.name_or_path = base
    config = peft.LoraConfig(
        r=work.rank,
        lora_alpha=work.alpha,
        target_modules=list(work.targets),
        lora_dropout=0.0,
        bias="none",
        task_type=peft.TaskType.CAUSAL_LM,
    )
    return peft.get_peft_model(model, config)


def weights_of(model: peft.PeftModel) -> Weights:
    """Returns the weights of the adapter, on the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in peft.get_peft_model_state_dict(model, save_embedding_layers=False).items()}


def restore(model: peft.PeftModel, weights: Weights) -> None:
    """Sets the weights of the adapter."""
    peft.set_peft_model_state_dict(model, dict(weights))


def publish(
    model: peft.PeftModel, work: FinetuneWork, state: TrainingState, fingerprint: str, *, template: str, temporary: Path, output: Path
) -> None:
    """Writes the adapter in PEFT's format, with the chat template and a summary of the training, and then moves it to `output` as a whole.

    `temporary` is the folder in which it is prepared. Raises OSError.
    """
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary), safe_serialization=True, save_embedding_layers=False)
    (temporary / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    (temporary / METRICS).write_text("".join(f"{json.dumps(line)}\n" for line in state.history), encoding="utf-8")
    (temporary / CARD).write_text(json.dumps({**_card(model, work, state), _FINGERPRINT: fingerprint}, indent=2) + "\n", encoding="utf-8")
    _plot(state.history, temporary / PLOT)
    temporary.replace(output)


def published_fingerprint(output: Path) -> str | None:
    """Returns the fingerprint of the training that made a published adapter; None if it is not recorded. Raises OSError."""
    card = output / CARD
    found = json.loads(card.read_text(encoding="utf-8")).get(_FINGERPRINT) if card.is_file() else None
    return found if isinstance(found, str) else None


def _card(model: peft.PeftModel, work: FinetuneWork, state: TrainingState) -> dict[str, Any]:
    trained, total = model.get_nb_trainable_parameters()
    return {
        "options": {name: value for name, value in asdict(work).items() if name not in {"input", "rejects"}},
        "adapter_parameters": trained,
        "parameters_fraction": trained / (total - trained),
        "steps": state.steps,
        "epochs": state.epoch,
        "tokens": state.tokens,
        "best_evaluation_loss": state.best_loss if state.best is not None else None,
    }


def _plot(history: Sequence[Mapping[str, float]], file: Path) -> None:
    """Plots the training loss by step and the evaluation loss after each epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, style, label in (("loss", "-", "training"), ("evaluation_loss", "o-", "evaluation")):
        points = [(line["step"], line[name]) for line in history if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file)
