"""`neox-serve embed`, `score`, `tokenize`, `detokenize` and `estimate`."""

from typing import Annotated, Literal

import typer

from neox_serve.cli.connection import Connection, connected, interruptible
from neox_serve.cli.console import JsonOption, Pooling, Truncation, print_json, read_texts

TextsArgument = Annotated[list[str], typer.Argument(metavar="TEXT...", help='"-" reads standard input.')]
ModelOption = Annotated[str | None, typer.Option(help="Absent: the one served.")]
_SHOWN_VALUES = 6


@connected
@interruptible
def embed(
    connection: Connection,
    *,
    texts: TextsArgument,
    model: ModelOption = None,
    pooling: Annotated[Pooling | None, typer.Option(help="Absent: the model's default.")] = None,
    normalize: Annotated[bool | None, typer.Option(help="Scale to length 1 (the default).")] = None,
    truncation: Annotated[Truncation | None, typer.Option(help="What to keep of a text that is too long.")] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up after this long.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn texts into vectors."""
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
    context: Annotated[str, typer.Argument(help='Text before the continuations; "" stands for a text\'s beginning.')],
    continuations: Annotated[list[str], typer.Argument(metavar="CONTINUATION...", help="Texts after it.")],
    model: ModelOption = None,
    adapter: Annotated[str | None, typer.Option(help="LoRA adapter.")] = None,
    keep_end: Annotated[bool, typer.Option("--keep-end", help="Cut what is too long off the context's start.")] = False,
    timeout_s: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up after this long.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how likely texts are as continuations of another, the likeliest first."""
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
    offsets: Annotated[bool, typer.Option("--offsets", help="Show where in the text each token stands, as id:start-end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn texts into token ids, a line each."""
    with connection.client() as client:
        results = client.tokenize(read_texts(texts), include_offsets=offsets, model=model)
    if as_json:
        print_json(results)
        return
    for result in results:
        places = [f":{start}-{end}" for start, end in result.offsets] or [""] * len(result.token_ids)
        print(" ".join(f"{token_id}{place}" for token_id, place in zip(result.token_ids, places, strict=True)))


@connected
@interruptible
def detokenize(
    connection: Connection,
    *,
    token_ids: Annotated[list[str], typer.Argument(metavar="ID...", help='"-" reads standard input.')],
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn token ids into text."""
    words = " ".join(read_texts(token_ids)).replace(",", " ").split()
    if not all(word.isdecimal() for word in words):
        raise typer.BadParameter("token ids are whole numbers", param_hint="ID...")
    with connection.client() as client:
        texts = client.detokenize([int(word) for word in words], model=model)
    print_json(texts) if as_json else print("\n".join(texts))


@connected
@interruptible
def estimate(
    connection: Connection,
    *,
    prompts: TextsArgument,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of a completion; absent: as many as fit.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Completions of each prompt.")] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a generation would take and how long it would wait, without running it."""
    with connection.client() as client:
        found = client.estimate(read_texts(prompts), max_tokens=max_tokens, n=n, model=model)
    if as_json:
        print_json(found)
        return
    wait = "not known yet" if found.expected_wait_s is None else f"{found.expected_wait_s:.1f} s"
    print(f"{found.prompt_tokens:,} prompt tokens, up to {found.max_completion_tokens:,} completion tokens; cost {found.cost:,.0f}")
    print(f"expected wait: {wait}")
    for quota, left in found.quota_left.items():
        print(f"left, {quota.replace('_', ' ')}: {left:,}")
    if not found.fits_quota:
        print("The tenant's quotas would not let it run now.")
