"""Measures a model folder on the held-out modules, against xz on the same bytes, and samples completions.

Bits per byte, not perplexity per token: it does not depend on the tokenizer and is what a compressor would need.
Each module is its own document: it starts from `<|endoftext|>` alone, and longer modules slide a window so that
every later token is predicted from at least CONTEXT_TOKENS - STRIDE_TOKENS tokens before it.
"""

import lzma
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerBase

CONTEXT_TOKENS = 2048
STRIDE_TOKENS = 1024
COMPLETION_TOKENS = 64
PROMPTS: tuple[str, ...] = (
    "def fibonacci(n):",
    "import os\n",
    "class Stack:\n    def __init__(self",
    'def read_lines(path):\n    """Return the lines of the file."""\n    with open(',
    "    try:\n        value = int(text)\n    except ",
    "for key, value in self.",
)


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `start` to `end` go through the model; those from `scored_from` on count. All are stream indices."""

    start: int
    end: int
    scored_from: int


@dataclass(frozen=True, slots=True)
class DocumentScore:
    """What it costs to predict one document."""

    name: str
    size_bytes: int
    tokens: int
    nats: float

    @property
    def bits_per_byte(self) -> float:
        """Bits the model needs for each byte of UTF-8 text."""
        return self.nats / math.log(2) / self.size_bytes


def sliding_windows(length: int, context: int = CONTEXT_TOKENS, stride: int = STRIDE_TOKENS) -> Iterator[Window]:
    """Windows that score every token of a stream of `length` but the first exactly once."""
    scored_from = 1
    while scored_from < length:
        end = context if scored_from == 1 else scored_from + stride
        end = min(end, length)
        yield Window(max(end - context, 0), end, scored_from)
        scored_from = end


def score_document(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, name: str, text: str) -> DocumentScore:
    """Total cost of `text` given `<|endoftext|>` before it.

    Raises:
        ValueError: the tokenizer does not give `text` back, so its tokens would measure some other text.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if tokenizer.decode(ids) != text:
        raise ValueError(f"{name} does not survive the tokenizer; bits per byte would not be of its bytes")
    stream = torch.tensor([tokenizer.eos_token_id, *ids])
    nats = 0.0
    for window in sliding_windows(len(stream)):
        scored = window.end - window.scored_from
        with torch.inference_mode():
            output = model(input_ids=stream[None, window.start : window.end], use_cache=False, logits_to_keep=scored + 1)
        predictions, targets = output.logits[0, :-1].float(), stream[window.scored_from : window.end]
        nats += torch.nn.functional.cross_entropy(predictions, targets, reduction="sum").item()
    return DocumentScore(name, len(text.encode()), len(ids), nats)


def xz_bits_per_byte(texts: Sequence[str]) -> float:
    """What `xz -9e` needs for the concatenation of `texts`, in bits per byte."""
    joined = "".join(texts).encode()
    return 8 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)) / len(joined)


def total_bits_per_byte(scores: Sequence[DocumentScore]) -> float:
    """Bits per byte over all documents together."""
    return sum(score.nats for score in scores) / math.log(2) / sum(score.size_bytes for score in scores)


def score_documents(
    model: GPTNeoXForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[tuple[str, str]],
    advance: Callable[[DocumentScore], None],
    workers: int = 2,
) -> list[DocumentScore]:
    """Scores of (name, text) pairs, in order; `advance` is told of each. Each worker thread takes whole documents."""
    scores = []
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for score in pool.map(lambda document: score_document(model, tokenizer, *document), documents):
            scores.append(score)
            advance(score)
    return scores


def complete(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int = COMPLETION_TOKENS) -> str:
    """The greedy continuation of `prompt`, without the prompt."""
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
