"""`neox-serve generate`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neox_serve.cli.connection import Connection, connected, interruptible
from neox_serve.cli.console import AdapterOption, JsonOption, ModelOption, OnDeadline, TimeoutOption, Truncation, print_json, read_texts

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
    prompt: Annotated[str, typer.Argument(help='Text to complete. "-" reads standard input.')],
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream", help="Print text as it is generated. Default: only if one completion is printed to a terminal."
        ),
    ] = None,
    as_json: JsonOption = False,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt as a user's message, formatted with the model's chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message that precedes the prompt; needs --chat.")] = None,
    request_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Id of the request: 1 to 128 characters of [A-Za-z0-9._:-]. Default: a random one.")
    ] = None,
    timeout_s: TimeoutOption = None,
    on_deadline: Annotated[
        OnDeadline | None, typer.Option(help="What to return when --timeout passes: an error (default), or the tokens generated so far.")
    ] = None,
    truncation: Annotated[
        Truncation | None, typer.Option(help="Which end of a prompt to keep if it is too long. Default: such a prompt is an error.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Number of completions (default: 1).")] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="Number of alternatives to return at each generated token, with log-probabilities; needs --json.")
    ] = None,
    prompt_logprobs: Annotated[int | None, typer.Option(help="The same for each token of the prompt.")] = None,
    temperature: Annotated[
        float | None, _option(_SAMPLING, "Temperature, 0 to 2; 0 is greedy decoding (default: 1).", "--temperature", "-t")
    ] = None,
    top_p: Annotated[
        float | None, _option(_SAMPLING, "Sample from the most likely tokens with this total probability, above 0, at most 1 (default: 1).")
    ] = None,
    top_k: Annotated[int | None, _option(_SAMPLING, "Sample from this many of the most likely tokens. Default: from all.")] = None,
    min_p: Annotated[
        float | None, _option(_SAMPLING, "Minimum probability of a token relative to the most likely one, 0 to 1 (default: 0).")
    ] = None,
    repetition_penalty: Annotated[
        float | None, _option(_SAMPLING, "Penalty for tokens of the prompt and the output, above 0, at most 2 (default: 1, none).")
    ] = None,
    presence_penalty: Annotated[float | None, _option(_SAMPLING, "Penalty for tokens in the output, -2 to 2 (default: 0).")] = None,
    frequency_penalty: Annotated[
        float | None, _option(_SAMPLING, "Penalty for each time a token is in the output, -2 to 2 (default: 0).")
    ] = None,
    seed: Annotated[int | None, _option(_SAMPLING, "Seed that makes sampling reproducible. Default: a random one.")] = None,
    logit_bias: Annotated[
        list[str] | None, _option(_SAMPLING, "Add BIAS to the logit of token ID; repeatable.", "--logit-bias", metavar="ID=BIAS")
    ] = None,
    max_tokens: Annotated[int, _option(_STOPPING, "Maximum number of tokens to generate.", "--max-tokens", "-m")] = 128,
    min_tokens: Annotated[int | None, _option(_STOPPING, "Number of tokens before a stop condition applies (default: 0).")] = None,
    stop: Annotated[list[str] | None, _option(_STOPPING, "Text that ends generation; repeatable.", metavar="TEXT")] = None,
    stop_token_id: Annotated[list[int] | None, _option(_STOPPING, "Token id that ends generation; repeatable.", metavar="ID")] = None,
    ignore_eos: Annotated[bool, _option(_STOPPING, "Continue past the end-of-text token.", "--ignore-eos")] = False,
    include_stop: Annotated[bool, _option(_STOPPING, "Keep the stop text that matched in the output.", "--include-stop")] = False,
    json_schema: Annotated[
        str | None,
        _option(_STRUCTURED_OUTPUT, "JSON Schema that the output follows, or @FILE that holds one.", metavar="SCHEMA|@FILE"),
    ] = None,
    regex: Annotated[
        str | None,
        _option(_STRUCTURED_OUTPUT, "Regular expression that the whole output matches.", metavar="PATTERN"),
    ] = None,
    choice: Annotated[list[str] | None, _option(_STRUCTURED_OUTPUT, "A text that may be the output; repeatable.", metavar="TEXT")] = None,
    beam_width: Annotated[int | None, _option(_BEAMS, "Number of beams; turns beam search on.")] = None,
    length_penalty: Annotated[
        float | None, _option(_BEAMS, "Exponent of the length in a beam's score; values above 1 favour long texts (default: 1).")
    ] = None,
    num_return: Annotated[int | None, _option(_BEAMS, "Number of beams to return. Default: all.")] = None,
    chunk_interval_s: Annotated[
        float | None, _option(_STREAM, "Minimum time between two chunks, 0 to 10 (default: 0).", "--chunk-interval", metavar="SECONDS")
    ] = None,
    chunk_tokens: Annotated[int | None, _option(_STREAM, "Minimum number of tokens per chunk (default: 1).")] = None,
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
    (text,) = read_texts([prompt])
    if system is not None and not chat:
        raise typer.BadParameter("needs --chat", param_hint="--system")
    content = _chat(text, system) if chat else text
    if _streams(stream, several=(n or 1) > 1, beams=beam_width is not None, as_json=as_json):
        _stream(connection, content, request | chunks, as_json=as_json)
    elif any(value is not None for value in chunks.values()):
        raise typer.BadParameter("needs --stream", param_hint="--chunk-interval, --chunk-tokens")
    else:
        _generate(connection, content, request | beams, as_json=as_json)


def _streams(wanted: bool | None, *, several: bool, beams: bool, as_json: bool) -> bool:
    if wanted and beams:
        raise typer.BadParameter("cannot be combined with beam search", param_hint="--stream")
    if wanted and several and not as_json:
        raise typer.BadParameter("needs --json if there are several completions", param_hint="--stream")
    if wanted is None:
        return sys.stdout.isatty() and not (several or beams or as_json)
    return wanted


def _chat(prompt: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def _stream(connection: Connection, prompt: "Prompt", request: dict[str, Any], *, as_json: bool) -> None:
    """Prints the text as it arrives, or one line of JSON per event."""
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
                _print_summary(final.usage, final.timings, ", ".join(str(finish.reason) for finish in final.finishes))


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
    _print_summary(result.usage, result.timings, ", ".join(str(completion.finish.reason) for completion in completions))


def _print_summary(usage: Any, timings: Any, finishes: str) -> None:
    """Prints one line on stderr if that is a terminal."""
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
