"""Evaluation of a model on the held-out modules, compared with xz on the same bytes, and greedy completions.

The measure is bits per byte instead of perplexity per token, because it does not depend on the tokenizer and equals the size that a
compressor would need. Each module is a document of its own, preceded only by `<|endoftext|>`. For longer modules, a sliding window ensures
that every later token is predicted from at least CONTEXT_TOKENS - STRIDE_TOKENS previous tokens.
"""

import lzma
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerBase

from neox_serve.model.windows import sliding_windows

CONTEXT_TOKENS = 2048
"""Length of the window."""
STRIDE_TOKENS = 1024
"""Number of tokens by which the window advances."""
COMPLETION_TOKENS = 64
"""Length of the completions in the model card."""
PROMPTS: tuple[str, ...] = (
    "def fibonacci(n):",
    "import os\n",
    "class Stack:\n    def __init__(self",
    'def read_lines(path):\n    """Return the lines of the file."""\n    with open(',
    "    try:\n        value = int(text)\n    except ",
    "for key, value in self.",
)
"""Prompts of the completions in the model card."""


@dataclass(frozen=True, slots=True)
class DocumentScore:
    """The cost of predicting one document."""

    name: str
    """Name of the document."""
    size_bytes: int
    """Size of the text in UTF-8."""
    tokens: int
    """Number of tokens."""
    nats: float
    """Sum of the tokens' cross-entropies."""

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs per byte of UTF-8 text."""
        return self.nats / math.log(2) / self.size_bytes


def score_document(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, name: str, text: str) -> DocumentScore:
    """Returns the cost of `text`, preceded by `<|endoftext|>`.

    Raises ValueError if decoding the tokens does not reproduce `text`, because the score would then be that of another text.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if tokenizer.decode(ids) != text:
        raise ValueError(f"{name}: decoding its tokens does not reproduce the text, so its bits per byte cannot be measured")
    stream = torch.tensor([tokenizer.eos_token_id, *ids])
    nats = 0.0
    for window in sliding_windows(len(stream), CONTEXT_TOKENS, STRIDE_TOKENS):
        scored = window.end - window.scored_from
        with torch.inference_mode():
            output = model(input_ids=stream[None, window.start : window.end], use_cache=False, logits_to_keep=scored + 1)
        predictions, targets = output.logits[0, :-1].float(), stream[window.scored_from : window.end]
        nats += torch.nn.functional.cross_entropy(predictions, targets, reduction="sum").item()
    return DocumentScore(name, len(text.encode()), len(ids), nats)


def xz_bits_per_byte(texts: Sequence[str]) -> float:
    """Returns the size of the concatenation of `texts` compressed by `xz -9e`, in bits per byte."""
    joined = "".join(texts).encode()
    return 8 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)) / len(joined)


def total_bits_per_byte(scores: Sequence[DocumentScore]) -> float:
    """Returns the bits per byte of all documents together."""
    return sum(score.nats for score in scores) / math.log(2) / sum(score.size_bytes for score in scores)


def score_documents(
    model: GPTNeoXForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[tuple[str, str]],
    advance: Callable[[DocumentScore], None],
    workers: int = 2,
) -> list[DocumentScore]:
    """Returns the scores of (name, text) pairs in order. `advance` is called with each score. Each worker thread scores whole documents."""
    scores = []
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for score in pool.map(lambda document: score_document(model, tokenizer, *document), documents):
            scores.append(score)
            advance(score)
    return scores


def complete(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int = COMPLETION_TOKENS) -> str:
    """Returns the greedy continuation of `prompt`, without the prompt."""
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=max_new_tokens,
        )
    continuation: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return continuation
