"""The adapter: put on a model before the training, published after it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import GPTNeoXForCausalLM

from deployments.jobs.finetune.checkpoint import Standing, Weights
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.model.chat import TEMPLATE_FILE

METRICS, PLOT, CARD = "metrics.jsonl", "loss.svg", "training.json"
_FINGERPRINT = "fingerprint"


def adapted(model: GPTNeoXForCausalLM, work: FinetuneWork, base: str) -> peft.PeftModel:
    """The model with a fresh adapter, whose product is zero. base: the model's name, which the adapter says it is for."""
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
    """The adapter's alone."""
    return {name: tensor.detach().cpu() for name, tensor in peft.get_peft_model_state_dict(model, save_embedding_layers=False).items()}


def restore(model: peft.PeftModel, weights: Weights) -> None:
    """Sets the adapter's weights."""
    peft.set_peft_model_state_dict(model, dict(weights))


def publish(
    model: peft.PeftModel, work: FinetuneWork, standing: Standing, fingerprint: str, *, template: str, aside: Path, output: Path
) -> None:
    """A folder in PEFT's own form, with the chat template and how the training went. It is there whole, or not at all. Raises OSError."""
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(str(aside), safe_serialization=True, save_embedding_layers=False)
    (aside / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    (aside / METRICS).write_text("".join(f"{json.dumps(line)}\n" for line in standing.history), encoding="utf-8")
    (aside / CARD).write_text(json.dumps({**_card(model, work, standing), _FINGERPRINT: fingerprint}, indent=2) + "\n", encoding="utf-8")
    _plot(standing.history, aside / PLOT)
    aside.replace(output)


def published_fingerprint(output: Path) -> str | None:
    """Of the training that an adapter in its place is from; None where it does not say. Raises OSError."""
    card = output / CARD
    found = json.loads(card.read_text(encoding="utf-8")).get(_FINGERPRINT) if card.is_file() else None
    return found if isinstance(found, str) else None


def _card(model: peft.PeftModel, work: FinetuneWork, standing: Standing) -> dict[str, Any]:
    trained, whole = model.get_nb_trainable_parameters()
    return {
        "options": {name: value for name, value in asdict(work).items() if name not in {"input", "rejects"}},
        "adapter_parameters": trained,
        "parameters_fraction": trained / (whole - trained),
        "steps": standing.steps,
        "epochs": standing.epoch,
        "tokens": standing.tokens,
        "best_evaluation_loss": standing.best_loss if standing.best is not None else None,
    }


def _plot(history: Sequence[Mapping[str, float]], file: Path) -> None:
    """The loss by step, and what was measured after each epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, style, label in (("loss", "-", "training"), ("evaluation_loss", "o-", "evaluation")):
        points = [(line["step"], line[name]) for line in history if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file)
