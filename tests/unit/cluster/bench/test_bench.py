"""`neox-serve bench` without a server: combinations of options, the load that they make, and notes on the results."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.bench.endpoints import Endpoint
from cluster.bench.plan import OptionError, Options, plan
from cluster.bench.plot import plot
from cluster.cli import app
from cluster.views.bench import describe, reading_notes
from neox_serve.loadgen.arrivals import ClosedLoop, OpenLoop, Replay
from neox_serve.loadgen.load import Load
from neox_serve.loadgen.records import Arrival, Record, record
from neox_serve.loadgen.summaries import summarize
from neox_serve.loadgen.targets.grpc_gateway import GatewaySpec
from neox_serve.loadgen.workloads import Synthetic

ENDPOINT = Endpoint("neox-serve", "a:1", "m", max_model_len=100, vocabulary_size=800, target=GatewaySpec("a:1"))
NO_LENGTH = Endpoint("openai", "http://a", "m", max_model_len=None, vocabulary_size=800, target=GatewaySpec("a:1"))
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,40,10\n2023-11-16 18:17:04,800,30\n"


def azure(folder: Path) -> Path:
    (folder / "t.csv").write_text(AZURE)
    return folder / "t.csv"


def answered(start_s: float, sent_s: float, end_s: float) -> Record:
    return record(4, [Arrival(end_s, (1,))], intended_s=start_s, sent_s=sent_s, end_s=end_s)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--streams", "2", "--rate", "1"], "--rate"),
        (["--rate", "0"], "--rate"),
        (["--burstiness", "2"], "--burstiness"),
        (["--speed", "2"], "--speed"),
        (["--trace", "t.csv", "--speed", "2", "--rate", "1"], "--speed"),
        (["--duration", "0"], "--duration"),
        (["--max-in-flight", "2"], "--max-in-flight"),
        (["--trace", "t.csv", "--input-tokens", "2"], "--input-tokens"),
        (["--streams", "5", "--requests", "4"], "--requests"),
        (["--trace-divisor", "3"], "--trace-divisor"),
        (["--openai-url", "ftp://a", "--model", "m"], "--openai-url"),
        (["--openai-url", "http://a"], "--model"),
        (["--metadata", "x"], "--metadata"),
        (["--json", "/none/x.json"], "--json"),
        (["--plot", "x.jpeg"], "--plot"),
    ],
)
def test_bench_invalid_options_exit_with_2_and_are_named(arguments: list[str], option: str) -> None:
    done = CliRunner().invoke(app, ["bench", "--address", "127.0.0.1:1", *arguments])
    assert done.exit_code == 2
    assert option in done.stderr


def test_plot_without_matplotlib_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    done = CliRunner().invoke(app, ["bench", "--plot", "x.png"])
    assert (done.exit_code, "pip install matplotlib" in done.stderr) == (1, True)


def test_unreachable_gateway_says_how_to_start_one() -> None:
    done = CliRunner().invoke(app, ["bench", "--address", "127.0.0.1:1"])
    assert (done.exit_code, "neox-serve up" in done.stderr) == (1, True)


def test_plan_without_options_is_a_closed_loop() -> None:
    planned = plan(Options(input_tokens=8, output_tokens=4), ENDPOINT)
    assert planned.load.arrivals == ClosedLoop(8)
    assert planned.requests == 100


@pytest.mark.parametrize(
    ("options", "arrivals", "requests"),
    [
        ({"streams": 200}, ClosedLoop(200), 200),
        ({"rate": 2.0}, OpenLoop(2.0), 100),
        ({"rate": 2.0, "burstiness": 0.0}, OpenLoop(2.0, 0.0), 100),
        ({"rate": 2.0, "duration_s": 5.0}, OpenLoop(2.0), None),
        ({"streams": 2, "duration_s": 5.0, "requests": 7}, ClosedLoop(2), 7),
    ],
)
def test_plan_of_synthetic_requests(options: dict[str, Any], arrivals: ClosedLoop | OpenLoop, requests: int | None) -> None:
    planned = plan(Options(input_tokens=8, output_tokens=4, **options), ENDPOINT)
    assert (planned.load.arrivals, planned.requests) == (arrivals, requests)


def test_plan_of_a_trace_replays_it_and_notes_what_was_clipped(tmp_path: Path) -> None:
    planned = plan(Options(trace=azure(tmp_path), speed=3.0), ENDPOINT)
    assert (planned.load.arrivals, planned.requests) == (Replay(3.0), 2)
    assert planned.notes == ("1 of 2 requests are clipped to a context length of 100 tokens.",)


def test_plan_of_a_trace_with_a_rate_uses_only_its_lengths(tmp_path: Path) -> None:
    assert plan(Options(trace=azure(tmp_path), rate=1.0), ENDPOINT).load.arrivals == OpenLoop(1.0)


def test_plan_of_a_trace_without_times_needs_a_rate(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "x", "max_tokens": 1}\n')
    with pytest.raises(OptionError, match="--rate or --streams"):
        plan(Options(trace=tmp_path / "t.jsonl"), ENDPOINT)


def test_plan_beyond_the_context_length_is_refused() -> None:
    with pytest.raises(OptionError, match="exceed the context length of m, 100"):
        plan(Options(), ENDPOINT)


def test_plan_of_a_trace_without_a_context_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not report the context length"):
        plan(Options(trace=azure(tmp_path)), NO_LENGTH)
    assert plan(Options(trace=azure(tmp_path), max_model_len=50), NO_LENGTH).notes[0].endswith("context length of 50 tokens.")


def test_notes_say_what_limits_the_figures() -> None:
    records = [answered(0.0, 0.0, 1.0), answered(0.0, 1.0, 2.0)]
    capped = Load(Synthetic("w", 2), OpenLoop(1.0), max_in_flight=1)
    late, busy = reading_notes(capped, summarize(records, open_loop=True), 0, client_cpu_s=1.9)
    assert ("p99 990 ms" in late, "at most 1 requests were allowed in flight" in late, "0.95 of a CPU core" in busy) == (True, True, True)
    closed = Load(Synthetic("w", 2), ClosedLoop(1))
    assert reading_notes(closed, summarize(records), 0, client_cpu_s=0.1) == []
    assert "3 requests in flight were cut off" in reading_notes(closed, summarize(records), 3, client_cpu_s=0.1)[0]


def test_describe_names_each_kind_of_arrivals() -> None:
    loads = (Load(Synthetic("w", 2), each) for each in (ClosedLoop(2), OpenLoop(1.5, 2.0), Replay(4.0)))
    descriptions = [describe(load) for load in loads]
    assert descriptions == [
        "closed loop of 2 streams",
        "open loop at 1.5 requests/s, gaps with CV 2",
        "open loop at 4 x the recorded speed",
    ]


@pytest.mark.parametrize("records", [[], [answered(0.0, 0.0, 1.0), answered(0.0, 1.0, 2.0)]])
def test_plot_suffix_decides_the_format(tmp_path: Path, records: list[Record]) -> None:
    plot(records, "m", tmp_path / "p.svg")
    plot(records, "m", tmp_path / "p.png")
    assert b"<svg" in (tmp_path / "p.svg").read_bytes()
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
