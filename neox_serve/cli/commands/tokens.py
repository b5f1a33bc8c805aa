"""`neox-serve embed`, `score`, `tokenize`, `detokenize` and `estimate`."""

from typing import Annotated, Literal

import typer

from neox_serve.cli.connection import Connection, connected, interruptible
from neox_serve.cli.console import (
    AdapterOption,
    JsonOption,
    ModelOption,
    Pooling,
    TextsArgument,
    TimeoutOption,
    Truncation,
    print_json,
    read_texts,
)

_SHOWN_VALUES = 6
"""Number of a vector's values that are printed."""


@connected
@interruptible
def embed(
    connection: Connection,
    *,
    texts: TextsArgument,
    model: ModelOption = None,
    pooling: Annotated[Pooling | None, typer.Option(help="How token vectors are combined. Default: the model's own pooling.")] = None,
    normalize: Annotated[bool | None, typer.Option(help="Scale vectors to length 1 (default: yes).")] = None,
    truncation: Annotated[
        Truncation | None, typer.Option(help="Which end of a text to keep if it is too long. Default: such a text is an error.")
    ] = None,
    timeout_s: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert texts to vectors."""
    with connection.client() as client:
        result = client.embed(
            read_texts(texts), model=model, pooling=pooling, normalize=normalize, truncation=truncation, timeout_s=timeout_s
        )
    if as_json:
        print_json(result)
        return
    for vector, tokens in zip(result.vectors, result.prompt_tokens, strict=True):
        shown = ", ".join(f"{value:+.4f}" for value in vector[:_SHOWN_VALUES])
        print(f"[{shown}, ...]  {len(vector)} dimensions, {tokens} tokens")


@connected
@interruptible
def score(
    connection: Connection,
    *,
    context: Annotated[str, typer.Argument(help='Text before the continuations; "" scores them as the beginning of a text.')],
    continuations: Annotated[list[str], typer.Argument(metavar="CONTINUATION...", help="Texts to score.")],
    model: ModelOption = None,
    adapter: AdapterOption = None,
    keep_end: Annotated[
        bool, typer.Option("--keep-end", help="Cut off the start of a context that is too long. Default: such a context is an error.")
    ] = False,
    timeout_s: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the log-likelihood of each continuation of a text, the most likely first."""
    pairs = [(context, text) for text in continuations]
    with connection.client() as client:
        truncation: Literal["keep_end"] | None = "keep_end" if keep_end else None
        result = client.score(pairs, model=model, adapter=adapter, truncation=truncation, timeout_s=timeout_s)
    if as_json:
        print_json(result)
        return
    for text, found in sorted(zip(continuations, result.scores, strict=True), key=lambda one: -one[1].log_likelihood):
        greedy = "greedy" if found.is_greedy else ""
        print(f"{found.log_likelihood:10.3f}  {len(found.tokens):4} tokens  {greedy:6}  {text!r}")


@connected
@interruptible
def tokenize(
    connection: Connection,
    *,
    texts: TextsArgument,
    model: ModelOption = None,
    offsets: Annotated[
        bool, typer.Option("--offsets", help="Print each token as ID:START-END, its position in the text in characters.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert texts to token ids, one line per text."""
    with connection.client() as client:
        results = client.tokenize(read_texts(texts), include_offsets=offsets, model=model)
    if as_json:
        print_json(results)
        return
    for result in results:
        positions = [f":{start}-{end}" for start, end in result.offsets] or [""] * len(result.token_ids)
        print(" ".join(f"{token_id}{position}" for token_id, position in zip(result.token_ids, positions, strict=True)))


@connected
@interruptible
def detokenize(
    connection: Connection,
    *,
    token_ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help='Token ids, separated by spaces or commas. "-" reads standard input.')
    ],
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert token ids to text."""
    words = " ".join(read_texts(token_ids)).replace(",", " ").split()
    if not all(word.isdecimal() for word in words):
        raise typer.BadParameter("token ids must be whole numbers", param_hint="ID...")
    with connection.client() as client:
        texts = client.detokenize([int(word) for word in words], model=model)
    print_json(texts) if as_json else print("\n".join(texts))


@connected
@interruptible
def estimate(
    connection: Connection,
    *,
    prompts: TextsArgument,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens per completion. Default: as many as fit into the context.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Completions per prompt (default: 1).")] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the tokens and the waiting time of a generation without running it."""
    with connection.client() as client:
        found = client.estimate(read_texts(prompts), max_tokens=max_tokens, n=n, model=model)
    if as_json:
        print_json(found)
        return
    wait = "unknown" if found.expected_wait_s is None else f"{found.expected_wait_s:.1f} s"
    print(f"{found.prompt_tokens:,} prompt tokens, up to {found.max_completion_tokens:,} completion tokens; cost {found.cost:,.0f}")
    print(f"expected wait: {wait}")
    for quota, left in found.quota_left.items():
        print(f"quota left, {quota.replace('_', ' ')}: {left:,}")
    if not found.fits_quota:
        print("The tenant's quotas do not allow this request now.")
