"""Writes the model card. Every number in it comes from evaluation.json, so a new checkpoint gets a new card."""

from typing import Any

from tools.builtin_model.heldout import HELDOUT_MODULES, MIN_LINE_CHARS
from tools.builtin_model.sources import PACKAGES

_FRONT = """---
library_name: transformers
license: apache-2.0
language: [en, code]
pipeline_tag: text-generation
tags: [gpt_neox, python]
---

# The built-in model

A GPT-NeoX trained from scratch on Python source and its documentation, small enough to live in the repository. It is
what the cluster serves, tests and benchmarks run on when no other checkpoint is given: a real architecture, a real
tokenizer and real weights that load in a second on a CPU. It is not a useful assistant.
"""

_LIMITATIONS = """## Limitations

- At {parameters:,} parameters it knows the look of Python, not its meaning: names are plausible, logic is often wrong,
  and greedy text falls into loops after a few dozen tokens. Do not run what it writes unread.
- It saw {tokens_millions:.1f} M tokens. English prose and other programming languages are outside its training text;
  any UTF-8 text is encoded without loss but predicted badly.
- It was trained on public code and may repeat short passages of it.
- Held-out modules are kept out by name and by shared lines (see `heldout.py`); the documentation of *other* modules
  does mention them.
"""


def render_card(evaluation: dict[str, Any]) -> str:
    """README.md of the model folder, from what the evaluate command measured."""
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
    table = "\n".join(["| Module | Bytes | This model | xz -9e, alone |", "|---|---:|---:|---:|", *rows])
    return f"""## Held-out result

**{heldout["bits_per_byte"]:.3f} bits per byte**, against **{heldout["xz_bits_per_byte"]:.3f}** for `xz -9e` on the
concatenation of the same {heldout["size_bytes"]:,} bytes: {len(heldout["modules"])} whole modules of Python 3.11's
standard library that were never trained on. {evaluation["contexts"]} The float32 weights before
rounding score {heldout["float32_bits_per_byte"]:.4f}, the saved {evaluation["model"]["dtype"]} weights
{heldout["bits_per_byte"]:.4f}.

{table}
"""


def _facts(evaluation: dict[str, Any]) -> str:
    model, training = evaluation["model"], evaluation["training"]
    return f"""## Model and training

| | |
|---|---|
| Architecture | GPTNeoXForCausalLM, parallel residual, rotary on a quarter of each head, untied embeddings |
| Size | {model["parameters"]:,} parameters: {model["layers"]} layers, width {model["hidden_size"]}, \
{model["heads"]} heads, inner width {model["intermediate_size"]} |
| Context | {model["max_model_len"]} tokens |
| Tokenizer | byte-level BPE, {model["vocab_size"]} tokens, built like GPT-NeoX-20B's (NFC, runs of 2 to 24 spaces) |
| Weights | {model["dtype"]}, safetensors |
| Steps | {training["steps"]:,} of {training["batch_tokens"]:,} tokens: {training["tokens"] / 1e6:.1f} M tokens, of which the \
annealing phase {training["annealing_blocks"] * training["block_tokens"] / 1e6:.1f} M |
| Context lengths | {training["context_stages"]} |
| Optimizer | AdamW, betas {training["betas"]}, weight decay {training["weight_decay"]} on matrices, gradient norm \
clipped at {training["clip_norm"]} |
| Learning rate | {training["learning_rate"]} |
| Seed | {training["seed"]}, for weights, document order and block order |
| Precision | float32 weights and residual stream, bfloat16 matrix products |
| Hardware | {training["hardware"]}; {training["elapsed_s"] / 60:.0f} minutes, \
{training["tokens_per_second"]:,.0f} tokens/s on average |

The budget was wall-clock time, so a repeated run takes another number of steps; everything else is fixed by the seed.
{training["history"]}
"""


def _data(evaluation: dict[str, Any]) -> str:
    corpus = evaluation["corpus"]
    names = ", ".join(f"{package.name} {package.version} ({package.licence})" for package in PACKAGES)
    rejected = ", ".join(f"{reason}: {count}" for reason, count in sorted(corpus["rejected"].items()))
    return f"""## Data

{corpus["documents"]:,} documents, {corpus["total_bytes"] / 1e6:.1f} MB, {corpus["tokens"] / 1e6:.1f} M tokens with
repeats; the annealing phase draws from the {corpus["annealing_tokens"] / 1e6:.1f} M tokens of the standard library, its
tests and its documentation. Only text whose licence allows this use:

- Python 3.11's standard library (PSF-2.0): every module twice, a third of its tests once. Held out: \
{", ".join(f"`{name}`" for name in HELDOUT_MODULES)}.
- Python 3.11's documentation (PSF-2.0, examples 0BSD).
- Non-test modules of pinned packages: {names}. Large packages are sampled by a hash of the path.

Left out as unsuitable, duplicate or too close to a held-out module: {rejected}. Of the held-out modules' lines of at least
{MIN_LINE_CHARS} characters, {corpus["heldout_lines_seen_fraction"]:.1%} also stand somewhere in the training text, mostly common idioms.
"""


def _completions(evaluation: dict[str, Any]) -> str:
    shown = [f"```python\n{item['prompt']}{item['completion']}\n```" for item in evaluation["completions"]]
    return "## Completions\n\nGreedy, not chosen; the prompt is the beginning of each.\n\n" + "\n\n".join(shown)


_REPRODUCE = """## Making it again

`python -m tools.builtin_model all` gathers the text, trains, exports and evaluates; `--help` explains each part.
This file and `evaluation.json` are written by its `evaluate` command.
"""
