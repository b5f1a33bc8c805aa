"""`neox-serve generate`: completes a prompt."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neox_serve.cli.connection import Connection, connected, interruptible
from neox_serve.cli.console import JsonOption, OnDeadline, Truncation, print_json, read_texts

if TYPE_CHECKING:
    from neox_serve.client.options import Prompt

_SAMPLING = "Sampling"
_STOPPING = "Stopping"
_STRUCTURED_OUTPUT = "Structured output"
_BEAMS = "Beam search"
_STREAM = "Streaming"


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


@connected
@interruptible
def generate(  # noqa: PLR0913 - the command's options, one by one
    connection: Connection,
    *,
    prompt: Annotated[str, typer.Argument(help='Text to continue; "-" reads standard input.')],
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print text as it comes. Default: on a terminal, for one completion.")
    ] = None,
    as_json: JsonOption = False,
    model: Annotated[str | None, typer.Option(help="Absent: the one served.")] = None,
    adapter: Annotated[str | None, typer.Option(help="LoRA adapter.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is what a user says: put it into the chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: what the assistant is told before.")] = None,
    request_id: Annotated[str | None, typer.Option(help="1 to 128 of [A-Za-z0-9._:-]; absent: made.")] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up after this long.")] = None,
    on_deadline: Annotated[OnDeadline | None, typer.Option(help="partial: return what there is when the timeout passes.")] = None,
    truncation: Annotated[Truncation | None, typer.Option(help="What to keep of a prompt that is too long.")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Completions.")] = None,
    logprobs: Annotated[int | None, typer.Option(help="Alternatives with log-probabilities at each token.")] = None,
    prompt_logprobs: Annotated[int | None, typer.Option(help="Likewise for the prompt.")] = None,
    temperature: Annotated[float | None, _option(_SAMPLING, "In [0, 2]; 0 is greedy.", "--temperature", "-t")] = None,
    top_p: Annotated[float | None, _option(_SAMPLING, "In (0, 1].")] = None,
    top_k: Annotated[int | None, _option(_SAMPLING, "Most likely tokens kept.")] = None,
    min_p: Annotated[float | None, _option(_SAMPLING, "In [0, 1].")] = None,
    repetition_penalty: Annotated[float | None, _option(_SAMPLING, "In (0, 2]; 1 is off.")] = None,
    presence_penalty: Annotated[float | None, _option(_SAMPLING, "In [-2, 2].")] = None,
    frequency_penalty: Annotated[float | None, _option(_SAMPLING, "In [-2, 2].")] = None,
    seed: Annotated[int | None, _option(_SAMPLING, "Makes sampling repeatable.")] = None,
    logit_bias: Annotated[list[str] | None, _option(_SAMPLING, "Repeatable.", "--logit-bias", metavar="ID=BIAS")] = None,
    max_tokens: Annotated[int, _option(_STOPPING, "Most tokens to generate.", "--max-tokens", "-m")] = 128,
    min_tokens: Annotated[int | None, _option(_STOPPING, "Tokens before any stop condition applies.")] = None,
    stop: Annotated[list[str] | None, _option(_STOPPING, "Text that ends generation; repeatable.")] = None,
    stop_token_id: Annotated[list[int] | None, _option(_STOPPING, "Token that ends generation; repeatable.")] = None,
    ignore_eos: Annotated[bool, _option(_STOPPING, "Go on past the end-of-text token.", "--ignore-eos")] = False,
    include_stop: Annotated[bool, _option(_STOPPING, "Leave the matched stop text in the output.", "--include-stop")] = False,
    json_schema: Annotated[str | None, _option(_STRUCTURED_OUTPUT, "JSON Schema, or @FILE with one.")] = None,
    regex: Annotated[str | None, _option(_STRUCTURED_OUTPUT, "Pattern that the whole output matches.")] = None,
    choice: Annotated[list[str] | None, _option(_STRUCTURED_OUTPUT, "One of these texts; repeatable.")] = None,
    beam_width: Annotated[int | None, _option(_BEAMS, "Beams kept.")] = None,
    length_penalty: Annotated[float | None, _option(_BEAMS, "Above 1 favours long texts.")] = None,
    num_return: Annotated[int | None, _option(_BEAMS, "Beams returned.")] = None,
    chunk_interval_s: Annotated[
        float | None, _option(_STREAM, "Least time between two chunks, 0 to 10.", "--chunk-interval", metavar="SECONDS")
    ] = None,
    chunk_tokens: Annotated[int | None, _option(_STREAM, "Least tokens in a chunk.")] = None,
) -> None:
    """Complete a prompt."""
    request = {
        "model": model,
        "adapter": adapter,
        "request_id": request_id,
        "timeout_s": timeout_s,
        "on_deadline": on_deadline,
        "truncation": truncation,
        "n": n,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
        "logit_bias": dict(map(_bias, logit_bias or [])),
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "stop": stop,
        "stop_token_ids": stop_token_id,
        "ignore_eos": ignore_eos,
        "include_stop_in_output": include_stop,
        "json_schema": _schema(json_schema),
        "regex": regex,
        "choice": choice or None,
    }
    beams = {"beam_width": beam_width, "length_penalty": length_penalty, "num_return": num_return}
    chunks = {"min_chunk_interval_s": chunk_interval_s, "min_chunk_tokens": chunk_tokens}
    (said,) = read_texts([prompt])
    if system is not None and not chat:
        raise typer.BadParameter("goes with --chat", param_hint="--system")
    text = _chat(said, system) if chat else said
    if _streams(stream, several=(n or 1) > 1, beams=beam_width is not None, as_json=as_json):
        _stream(connection, text, request | chunks, as_json=as_json)
    elif any(value is not None for value in chunks.values()):
        raise typer.BadParameter("only a stream has chunks: add --stream", param_hint="--chunk-interval, --chunk-tokens")
    else:
        _generate(connection, text, request | beams, as_json=as_json)


def _streams(wanted: bool | None, *, several: bool, beams: bool, as_json: bool) -> bool:
    if wanted and beams:
        raise typer.BadParameter("beam search has nothing to stream", param_hint="--stream")
    if wanted and several and not as_json:
        raise typer.BadParameter("several completions can be streamed as --json only", param_hint="--stream")
    if wanted is None:
        return sys.stdout.isatty() and not (several or beams or as_json)
    return wanted


def _chat(said: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": said}]


def _stream(connection: Connection, prompt: "Prompt", request: dict[str, Any], *, as_json: bool) -> None:
    """Prints text, or a line of JSON for each event."""
    from neox_serve.client import StreamChunk

    with connection.client() as client, client.stream(prompt, **request) as events:
        for event in events:
            if as_json:
                print_json(event)
            elif isinstance(event, StreamChunk):
                print(event.text, end="", flush=True)
        if not as_json:
            print()
            if events.final:
                final = events.final
                _summarise(final.usage, final.timings, ", ".join(str(finish.reason) for finish in final.finishes))


def _generate(connection: Connection, prompt: "Prompt", request: dict[str, Any], *, as_json: bool) -> None:
    with connection.client() as client:
        result = client.generate(prompt, **request)
    if as_json:
        print_json(result)
        return
    completions = result.results[0].completions
    for completion in completions:
        score = "" if completion.score is None else f", score {completion.score:.3f}"
        if len(completions) > 1:
            print(f"--- {completion.index} ({completion.finish.reason}{score})")
        print(completion.text)
    _summarise(result.usage, result.timings, ", ".join(str(completion.finish.reason) for completion in completions))


def _summarise(usage: Any, timings: Any, finishes: str) -> None:
    """One dim line on stderr, for people."""
    if not sys.stderr.isatty():
        return
    from rich.console import Console

    first = f", first after {timings.first_token_s:.3f} s" if timings.first_token_s is not None else ""
    rate = usage.completion_tokens / timings.total_s if timings.total_s else 0.0
    text = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens in {timings.total_s:.2f} s{first}, {rate:.0f} tok/s, {finishes}"
    Console(stderr=True).print(text, style="dim", highlight=False)


def _bias(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition("=")
    try:
        return int(token_id), float(bias)
    except ValueError as error:
        raise typer.BadParameter(f"expected ID=BIAS, got {text!r}", param_hint="--logit-bias") from error


def _schema(text: str | None) -> str | None:
    if text is None or not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{text[1:]}: {error}", param_hint="--json-schema") from error
