"""The evaluate stage: evaluates a model folder, and writes evaluation.json and the model card to it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPTNeoXForCausalLM, PreTrainedTokenizerBase

from tools.builtin_model.card import render_card
from tools.builtin_model.checkpoint import Progress, load_checkpoint
from tools.builtin_model.data.corpus import read_documents
from tools.builtin_model.data.packing import BLOCK_TOKENS
from tools.builtin_model.evaluate import (
    CONTEXT_TOKENS,
    PROMPTS,
    STRIDE_TOKENS,
    DocumentScore,
    complete,
    score_documents,
    total_bits_per_byte,
    xz_bits_per_byte,
)
from tools.builtin_model.model import new_model
from tools.builtin_model.pipeline import read_json, read_streams
from tools.builtin_model.progress import progress_display
from tools.builtin_model.schedule import Schedule
from tools.builtin_model.train import TrainOptions

CONTEXTS = (
    f"Each module is a document of its own, preceded only by `<|endoftext|>`. For longer modules, a window of {CONTEXT_TOKENS} "
    f"tokens advances by {STRIDE_TOKENS} tokens, so each later token is predicted from the {STRIDE_TOKENS} to "
    f"{CONTEXT_TOKENS - 1} tokens before it."
)
"""Explanation of the evaluated contexts for the model card."""


def evaluate_folder(work: Path, folder: Path, hardware: str, history: str) -> dict[str, Any]:
    """Evaluates the model in `folder` on the held-out modules, writes evaluation.json and README.md to it, and returns the evaluation."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    before_rounding = new_model(0)
    streams = read_streams(work)
    progress = load_checkpoint(work / "run" / "checkpoint.pt", before_rounding)
    documents = [(document.path, document.text) for document in read_documents(work / "corpus" / "heldout.jsonl")]
    scores = _score("saved weights", model, tokenizer, documents)
    exact = _score("float32 weights", before_rounding.eval(), tokenizer, documents)
    evaluation = {
        "contexts": CONTEXTS,
        "model": _model_facts(model, read_json(folder / "config.json")),
        "training": {**_training_facts(progress), "hardware": hardware, "history": history},
        "corpus": {
            **read_json(work / "corpus" / "report.json"),
            "tokens": len(streams.everything),
            "annealing_tokens": len(streams.annealing),
        },
        "heldout": _heldout_facts(scores, documents, total_bits_per_byte(exact)),
        "completions": [{"prompt": prompt, "completion": complete(model, tokenizer, prompt)} for prompt in PROMPTS],
    }
    _write_text(folder / "evaluation.json", json.dumps(evaluation, indent=2) + "\n")
    _write_text(folder / "README.md", render_card(evaluation))
    return evaluation


def _score(
    label: str, model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, documents: Sequence[tuple[str, str]]
) -> list[DocumentScore]:
    size_bytes = sum(len(text.encode()) for _, text in documents)
    with progress_display() as display:
        task = display.add_task(label, total=size_bytes, unit="bytes", note="")
        return score_documents(model, tokenizer, documents, lambda score: display.advance(task, score.size_bytes))


def _heldout_facts(scores: Sequence[DocumentScore], documents: Sequence[tuple[str, str]], float32_bits_per_byte: float) -> dict[str, Any]:
    texts = [text for _, text in documents]
    modules = [
        {
            "name": score.name,
            "size_bytes": score.size_bytes,
            "tokens": score.tokens,
            "bits_per_byte": round(score.bits_per_byte, 4),
            "xz_bits_per_byte": round(xz_bits_per_byte([text]), 4),
        }
        for score, text in zip(scores, texts, strict=True)
    ]
    return {
        "bits_per_byte": round(total_bits_per_byte(scores), 4),
        "float32_bits_per_byte": round(float32_bits_per_byte, 4),
        "xz_bits_per_byte": round(xz_bits_per_byte(texts), 4),
        "size_bytes": sum(score.size_bytes for score in scores),
        "tokens": sum(score.tokens for score in scores),
        "modules": modules,
    }


def _model_facts(model: GPTNeoXForCausalLM, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "intermediate_size": config["intermediate_size"],
        "max_model_len": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "dtype": config["dtype"],
    }


def _training_facts(progress: Progress) -> dict[str, Any]:
    options, schedule = TrainOptions(), Schedule()
    stages = [f"{tokens} tokens from {start:.0%}" for start, tokens in schedule.context_stages]
    return {
        "steps": progress.steps,
        "tokens": progress.tokens,
        "annealing_blocks": progress.annealing_position.blocks,
        "block_tokens": BLOCK_TOKENS,
        "elapsed_s": round(progress.elapsed_s),
        "tokens_per_second": round(progress.tokens / progress.elapsed_s),
        "batch_tokens": options.batch_tokens,
        "context_stages": ", ".join(stages) + " of the budget",
        "learning_rate": f"peak {schedule.peak_learning_rate}, warm-up over {schedule.warmup_fraction:.0%} of the "
        f"budget, linear decay to zero from {schedule.decay_from_fraction:.0%}",
        "betas": list(options.betas),
        "weight_decay": options.weight_decay,
        "clip_norm": options.clip_norm,
        "seed": options.seed,
    }


def _write_text(path: Path, text: str) -> None:
    """Writes to a temporary file and rename it, so that readers of the folder never see an incomplete file."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
