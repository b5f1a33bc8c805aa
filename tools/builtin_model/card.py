"""Generates the model card. Every number in it comes from evaluation.json, so that a new checkpoint gets a matching card."""

from typing import Any

from tools.builtin_model.data.heldout import HELDOUT_MODULES, MIN_LINE_CHARS
from tools.builtin_model.data.sources import PACKAGES

_FRONT = """---
library_name: transformers
license: apache-2.0
language: [en, code]
pipeline_tag: text-generation
tags: [gpt_neox, python]
---

# The built-in model

This is a GPT-NeoX model, trained from scratch on Python source code and documentation, that is small enough to be part
of the repository. The cluster, its tests and its benchmarks use it unless another checkpoint is configured. It has the
real architecture, a real tokenizer and real weights, and loads in a second on a CPU. It is not a useful assistant.
"""

_LIMITATIONS = """## Limitations

- With {parameters:,} parameters, the model imitates the appearance of Python but not its meaning. Names are plausible,
  the logic is often wrong, and greedy decoding falls into loops after a few dozen tokens. Review its output before you
  run it.
- It was trained on {tokens_millions:.1f} M tokens. English prose and other programming languages are not part of the
  training text: any UTF-8 text is encoded without loss, but predicted badly.
- It was trained on public code and may repeat short passages of it.
- Held-out modules are excluded by name and by shared lines (see `tools/builtin_model/data/heldout.py`). The documentation of
  *other* modules mentions them.
"""


def render_card(evaluation: dict[str, Any]) -> str:
    """Returns README.md of the model folder. `evaluation` is the content of evaluation.json."""
    sections = [_FRONT, _results(evaluation), _facts(evaluation), _data(evaluation), _completions(evaluation)]
    sections.append(
        _LIMITATIONS.format(parameters=evaluation["model"]["parameters"], tokens_millions=evaluation["training"]["tokens"] / 1e6)
    )
    sections.append(_REPRODUCE)
    return "\n".join(section.rstrip() + "\n" for section in sections)


def _results(evaluation: dict[str, Any]) -> str:
    heldout = evaluation["heldout"]
    rows = [
        f"| `{module['name']}` | {module['size_bytes']:,} | {module['bits_per_byte']:.3f} | {module['xz_bits_per_byte']:.3f} |"
        for module in heldout["modules"]
    ]
    table = "\n".join(["| Module | Bytes | Model, bits per byte | `xz -9e`, bits per byte |", "|---|---:|---:|---:|", *rows])
    return f"""## Held-out result

The model needs **{heldout["bits_per_byte"]:.3f} bits per byte** for {len(heldout["modules"])} complete modules of Python 3.11's standard
library ({heldout["size_bytes"]:,} bytes) that are not in the training text. `xz -9e` needs
**{heldout["xz_bits_per_byte"]:.3f}** bits per byte for their concatenation. {evaluation["contexts"]} The float32 weights before
rounding need {heldout["float32_bits_per_byte"]:.4f} bits per byte, and the saved {evaluation["model"]["dtype"]} weights
{heldout["bits_per_byte"]:.4f}.

{table}
"""


def _facts(evaluation: dict[str, Any]) -> str:
    model, training = evaluation["model"], evaluation["training"]
    return f"""## Model and training

| | |
|---|---|
| Architecture | GPTNeoXForCausalLM with parallel residual, rotary embedding on a quarter of each head, untied embeddings |
| Size | {model["parameters"]:,} parameters: {model["layers"]} layers, width {model["hidden_size"]}, \
{model["heads"]} heads, inner width {model["intermediate_size"]} |
| Context | {model["max_model_len"]} tokens |
| Tokenizer | byte-level BPE, {model["vocab_size"]} tokens, built like GPT-NeoX-20B's (NFC, runs of 2 to 24 spaces) |
| Weights | {model["dtype"]}, safetensors |
| Steps | {training["steps"]:,} steps of {training["batch_tokens"]:,} tokens: {training["tokens"] / 1e6:.1f} M tokens, \
{training["annealing_blocks"] * training["block_tokens"] / 1e6:.1f} M of them in the annealing phase |
| Context lengths | {training["context_stages"]} |
| Optimizer | AdamW, betas {training["betas"]}, weight decay {training["weight_decay"]} on matrices, gradient norm \
clipped at {training["clip_norm"]} |
| Learning rate | {training["learning_rate"]} |
| Seed | {training["seed"]}, for weights, document order and block order |
| Precision | float32 weights and residual stream, bfloat16 matrix products |
| Hardware | {training["hardware"]}; {training["elapsed_s"] / 60:.0f} minutes, \
{training["tokens_per_second"]:,.0f} tokens/s on average |

The budget was wall-clock time, so a repeated run has a different number of steps. Everything else is determined by the seed.
{training["history"]}
"""


def _data(evaluation: dict[str, Any]) -> str:
    corpus = evaluation["corpus"]
    names = ", ".join(f"{package.name} {package.version} ({package.licence})" for package in PACKAGES)
    rejected = ", ".join(f"{reason}: {count}" for reason, count in sorted(corpus["rejected"].items()))
    return f"""## Data

The training text has {corpus["documents"]:,} documents, {corpus["total_bytes"] / 1e6:.1f} MB, and {corpus["tokens"] / 1e6:.1f} M tokens
including repetitions. The annealing phase uses the {corpus["annealing_tokens"] / 1e6:.1f} M tokens of the standard library, its
tests and its documentation. All sources have a licence that allows this use:

- Python 3.11's standard library (PSF-2.0): every module twice, a third of its tests once. Held out: \
{", ".join(f"`{name}`" for name in HELDOUT_MODULES)}.
- Python 3.11's documentation (PSF-2.0, examples 0BSD).
- Modules of pinned packages, without tests: {names}. Large packages are sampled by a hash of the path.

Rejected documents by reason: {rejected}. Of the held-out modules' lines with at least {MIN_LINE_CHARS} characters,
{corpus["heldout_lines_seen_fraction"]:.1%} also occur somewhere in the training text. Most of these are common idioms.
"""


def _completions(evaluation: dict[str, Any]) -> str:
    shown = [f"```python\n{item['prompt']}{item['completion']}\n```" for item in evaluation["completions"]]
    introduction = "These completions use greedy decoding and were not selected. Each block starts with the prompt."
    return f"## Completions\n\n{introduction}\n\n" + "\n\n".join(shown)


_REPRODUCE = """## Reproducing the model

`python -m tools.builtin_model all`, run in a clone of the repository, collects the text, trains, exports and evaluates.
It is a tool for developers and needs no cluster; `python -m tools.builtin_model --help` explains its commands. The
`evaluate` command writes `evaluation.json` and this file.
"""
