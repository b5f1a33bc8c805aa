"""`neox-serve bench`: measures a gateway, or a server with the OpenAI API, under load."""

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neox_serve.cli.connection import Connection, connected
from neox_serve.cli.console import print_view
from neox_serve.cli.errors import CommandError

if TYPE_CHECKING:
    from cluster.bench.endpoints import Endpoint
    from cluster.bench.plan import Plan
    from cluster.bench.run import Measured
    from neox_serve.loadgen.load import Load
    from neox_serve.loadgen.summaries import Slo, Summary
    from neox_serve.loadgen.targets.grpc_gateway import Metadata

_ARRIVALS, _REQUESTS, _TARGET, _RESULTS = "Arrivals", "Requests", "Target", "Results"
_PLOT_SUFFIXES = (".png", ".svg")


def _option(panel: str, text: str, *names: str, metavar: str | None = None, minimum: float | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, min=minimum)


@connected
def bench(  # noqa: PLR0913 - the command's options, one by one
    connection: Connection,
    *,
    streams: Annotated[
        int | None,
        _option(
            _ARRIVALS,
            "Closed loop: this many callers, each sending its next request after the last response (default: 8).",
            minimum=1,
        ),
    ] = None,
    rate: Annotated[float | None, _option(_ARRIVALS, "Open loop: requests per second, sent without waiting for responses.")] = None,
    burstiness: Annotated[
        float | None,
        _option(
            _ARRIVALS,
            "Coefficient of variation of the gaps of --rate: 0 is even, 1 is Poisson (default), more is burstier.",
            metavar="CV",
            minimum=0,
        ),
    ] = None,
    speed: Annotated[float | None, _option(_ARRIVALS, "Replay --trace this many times faster than recorded (default: 1).")] = None,
    max_in_flight: Annotated[
        int | None,
        _option(_ARRIVALS, "Maximum number of requests in flight in an open loop. Default: no limit.", minimum=1),
    ] = None,
    requests: Annotated[
        int | None,
        _option(
            _ARRIVALS,
            "Number of requests. Default: 100, all of --trace, or no limit with --duration.",
            "--requests",
            "-n",
            minimum=1,
        ),
    ] = None,
    duration_s: Annotated[
        float | None,
        _option(_ARRIVALS, "Send no requests after this time. Default: no limit.", "--duration", metavar="SECONDS"),
    ] = None,
    warm_up: Annotated[int, _option(_ARRIVALS, "Number of short requests that are sent first and not counted.", minimum=0)] = 4,
    input_tokens: Annotated[int | None, _option(_REQUESTS, "Length of synthetic prompts, in tokens (default: 128).", minimum=1)] = None,
    output_tokens: Annotated[int | None, _option(_REQUESTS, "Tokens to generate per request (default: 64).", minimum=1)] = None,
    trace: Annotated[
        Path | None,
        _option(_REQUESTS, "Recorded requests: Azure's CSV, Mooncake's JSONL, or JSONL with prompt, max_tokens and at_s.", metavar="FILE"),
    ] = None,
    trace_divisor: Annotated[int, _option(_REQUESTS, "Divide the lengths and prefix blocks of Mooncake's traces by this.", minimum=1)] = 8,
    max_model_len: Annotated[
        int | None,
        _option(_REQUESTS, "Clip the requests of a trace to this context length, in tokens. Default: the model's.", minimum=2),
    ] = None,
    seed: Annotated[
        int,
        _option(_REQUESTS, "Random seed of prompts and gaps. A run repeated with the same seed may find its prompts cached."),
    ] = 0,
    openai_url: Annotated[
        str | None,
        _option(_TARGET, "Measure a server with the OpenAI API, such as vLLM's, instead of a gateway; needs --model.", metavar="URL"),
    ] = None,
    model: Annotated[str | None, _option(_TARGET, "Model to call. Default: the model that the gateway serves.")] = None,
    channels: Annotated[int, _option(_TARGET, "Number of connections to the gateway.", minimum=1)] = 1,
    metadata: Annotated[
        list[str] | None,
        _option(_TARGET, "Send this metadata (with HTTP: header) with every call; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    slo_ttft_ms: Annotated[
        float | None,
        _option(_RESULTS, "Report goodput: requests with at most this TTFT, in milliseconds.", metavar="MS"),
    ] = None,
    slo_tpot_ms: Annotated[
        float | None,
        _option(_RESULTS, "Report goodput: requests with at most this time per output token, in milliseconds.", metavar="MS"),
    ] = None,
    slo_e2el_ms: Annotated[
        float | None,
        _option(_RESULTS, "Report goodput: requests with at most this total latency, in milliseconds.", metavar="MS"),
    ] = None,
    json_file: Annotated[
        Path | None, _option(_RESULTS, "Write the results to this file, with the names of `vllm bench serve`.", "--json", metavar="FILE")
    ] = None,
    plot_file: Annotated[
        Path | None,
        _option(_RESULTS, "Draw the latencies to this file; needs matplotlib.", "--plot", metavar="FILE.png|svg"),
    ] = None,
) -> None:
    """Measure throughput and latency under load."""
    from cluster.bench.plan import Options, plan

    _check_files(json_file, plot_file)
    with _explain_failures():
        options = Options(
            streams=streams,
            rate=rate,
            burstiness=burstiness,
            speed=speed,
            max_in_flight=max_in_flight,
            requests=requests,
            duration_s=duration_s,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            trace=trace,
            trace_divisor=trace_divisor,
            max_model_len=max_model_len,
            seed=seed,
        )
        endpoint = _endpoint(connection, openai_url, model, _metadata(metadata), channels)
        planned = plan(options, endpoint)
        measured = _measure(endpoint, planned, warm_up)
    _show_results(endpoint, planned, measured, _slo(slo_ttft_ms, slo_tpot_ms, slo_e2el_ms), json_file, plot_file)


def _check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """Checks the output paths before anything is measured, so that no result is lost."""
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise typer.BadParameter(f"{file.parent} is not a folder", param_hint=option)
    if plot_file is None:
        return
    if plot_file.suffix not in _PLOT_SUFFIXES:
        raise typer.BadParameter(f"{plot_file} is invalid; it must end in {' or '.join(_PLOT_SUFFIXES)}", param_hint="--plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--plot needs matplotlib: `pip install matplotlib`, or install neox-serve[plot]")


@contextlib.contextmanager
def _explain_failures() -> Iterator[None]:
    """Turns failures that are not bugs into messages for the user."""
    from cluster.bench.plan import OptionError
    from neox_serve.loadgen.processes import StartError
    from neox_serve.loadgen.targets import TargetError
    from neox_serve.loadgen.trace_files import TraceError

    try:
        yield
    except OptionError as error:
        raise typer.BadParameter(str(error), param_hint=error.option) from error
    except (TraceError, TargetError, StartError) as error:
        raise CommandError(str(error)) from error


def _endpoint(connection: Connection, openai_url: str | None, model: str | None, metadata: "Metadata", channels: int) -> "Endpoint":
    from cluster.bench.endpoints import gateway_endpoint, openai_endpoint

    if openai_url is None:
        return gateway_endpoint(connection.address, connection.tls, model, metadata, channels)
    if not openai_url.startswith(("http://", "https://")):
        raise typer.BadParameter("must start with http:// or https://", param_hint="--openai-url")
    if model is None:
        raise typer.BadParameter("must be given with --openai-url", param_hint="--model")
    return openai_endpoint(openai_url, connection.tls, model, metadata)


def _metadata(pairs: list[str] | None) -> "Metadata":
    for pair in pairs or ():
        if not pair.partition("=")[0] or "=" not in pair:
            raise typer.BadParameter(f"{pair!r} is invalid; it must have the form KEY=VALUE", param_hint="--metadata")
    split = (pair.partition("=") for pair in pairs or ())
    return tuple((key.lower(), value) for key, _, value in split)


def _measure(endpoint: "Endpoint", planned: "Plan", warm_up: int) -> "Measured":
    from cluster.bench.run import measure

    return measure(endpoint.target, planned.load, planned.requests, warm_up)


def _slo(ttft_ms: float | None, tpot_ms: float | None, e2el_ms: float | None) -> "Slo | None":
    from neox_serve.loadgen.summaries import Slo

    return None if ttft_ms is tpot_ms is e2el_ms is None else Slo(ttft_ms, tpot_ms, e2el_ms)


def _show_results(
    endpoint: "Endpoint", planned: "Plan", measured: "Measured", slo: "Slo | None", json_file: Path | None, plot_file: Path | None
) -> None:
    """Shows and writes the results. Raises CommandError if requests failed, and KeyboardInterrupt after Ctrl-C."""
    from cluster.views.bench import bench_json, bench_view, reading_notes

    load, summary = planned.load, _summary(planned.load, measured, slo)
    notes = [*planned.notes, *reading_notes(load, summary, measured.unfinished, measured.client_cpu_s)]
    print_view(bench_view(endpoint, load, summary, notes))
    if json_file is not None:
        content = bench_json(endpoint, load, summary, measured.unfinished)
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if plot_file is not None:
        from cluster.bench.plot import plot

        plot(measured.records, f"{endpoint.model}: {load.workload.name}", plot_file)
    if measured.interrupted:
        if summary.failed:
            print(_failures(summary), file=sys.stderr)
        raise KeyboardInterrupt
    if summary.failed:
        raise CommandError(_failures(summary))


def _failures(summary: "Summary") -> str:
    lines = [f"  {count:,} x {error}" for error, count in summary.errors.items()]
    return "\n".join([f"{summary.failed:,} of {summary.completed + summary.failed:,} requests failed:", *lines])


def _summary(load: "Load", measured: "Measured", slo: "Slo | None") -> "Summary":
    from neox_serve.loadgen.arrivals import ClosedLoop
    from neox_serve.loadgen.summaries import summarize

    streams = load.arrivals.streams if isinstance(load.arrivals, ClosedLoop) else None
    return summarize(
        measured.records,
        max_concurrency=streams or load.max_in_flight,
        open_loop=streams is None,
        slo=slo,
        client_cpu_s=measured.client_cpu_s,
    )
