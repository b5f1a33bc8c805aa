"""`make goals`: one line for each measurable goal, from runs that it makes itself.

    goal <id> <value> <op> <target> ok|short

A goal that could not be measured has "unmeasured" for its value, is short, and says why on the same line. Lines go to stdout, progress and
tables to stderr. Exit code 1 where a goal is short. A new goal is a row of GOALS and, where no run gives its figure yet, a method of Runs.
"""

import argparse
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten

from tests.bench import results
from tests.bench.engines import builtin_model, engine_comparison, fake_comparison
from tests.bench.goal import Goal
from tests.bench.goal_runs import Runs
from tests.bench.processes import stop_on_sigterm
from tests.bench.router import block_bytes
from tests.bench.scaling import goals as scaling_goals
from tests.bench.scaling import validation as scaling_validation
from tests.bench.view import View
from tests.simulation import fairness, mooncake

_REASON_CHARACTERS = 300


OPERATORS: Mapping[str, Callable[[float, float], bool]] = {"<": operator.lt, "<=": operator.le, ">=": operator.ge, ">": operator.gt}


def _throughput_over(*others: str, workloads: Sequence[str] = (engine_comparison.MANY,)) -> Callable[[Runs], float]:
    """tok/s of neox-serve over the best of others, the lowest of the workloads."""

    def measure(runs: Runs) -> float:
        ours, engines = engine_comparison.NEOX, runs.engines()
        found = [engines.ratio(ours, other, name, "output_throughput").median for other in others for name in workloads]
        return min(found)

    return measure


def _cpu_over_openai_server(runs: Runs) -> float:
    engines = engine_comparison
    return runs.engines().ratio(engines.NEOX, engines.OPENAI, engines.MANY, "system_cpu_s_per_1k_tokens").median


def _fake_over_serve_handle(runs: Runs) -> float:
    fake = fake_comparison
    return runs.fake().ratio(fake.NEOX, fake.HANDLE, fake.MANY, "output_throughput").median


def _added_ttft_ms(runs: Runs) -> float:
    engines = engine_comparison
    return runs.engines().difference(engines.NEOX, engines.ASYNC_LLM, engines.ONE, "median_ttft_ms").median


_CROWDS = (engine_comparison.MANY, engine_comparison.MOST)

GOALS: tuple[Goal, ...] = (
    Goal(
        "spine.gateway_over_openai_server_64",
        "tok/s of neox-serve over vLLM's OpenAI server, 64 streams, same engine settings",
        ">=",
        0.80,
        _throughput_over(engine_comparison.OPENAI),
    ),
    Goal(
        "spine.fake_over_serve_handle",
        "tok/s of neox-serve over a Serve handle, fake engine, 256 streams",
        ">=",
        4.0,
        _fake_over_serve_handle,
    ),
    Goal("spine.added_ttft_ms", "TTFT p50 of neox-serve minus AsyncLLM in process, one stream, ms", "<=", 10.0, _added_ttft_ms),
    Goal(
        "spine.free_after_cancel_p99_ms",
        "from cancel, deadline or client loss to the engine free, p99, ms",
        "<=",
        250.0,
        lambda runs: 1e3 * runs.cancellation().p99_s,
    ),
    Goal(
        "spine.roll_longest_gap_s",
        "longest wait of eight streaming clients while an engine setting is rolled, s",
        "<=",
        0.5,
        lambda runs: runs.rolling().longest_gap_s,
    ),
    Goal(
        "spine.builtin_bits_per_byte_over_xz",
        "held-out bits per byte of the built-in model over xz -9e",
        "<",
        1.0,
        Runs.bits_per_byte_over_xz,
    ),
    Goal("spine.builtin_model_mib", "size of the built-in model's folder, MiB", "<=", 16.0, lambda _: builtin_model.size_mib()),
    Goal(
        "path.over_openai_server",
        "tok/s of neox-serve over vLLM's OpenAI server, the lower of 64 and 128 streams",
        ">=",
        1.0,
        _throughput_over(engine_comparison.OPENAI, workloads=_CROWDS),
    ),
    Goal(
        "path.over_async_llm",
        "tok/s of neox-serve over AsyncLLM in process, the lower of 64 and 128 streams",
        ">=",
        0.85,
        _throughput_over(engine_comparison.ASYNC_LLM, workloads=_CROWDS),
    ),
    Goal(
        "path.over_serve_llm",
        "tok/s of neox-serve over ray.serve.llm in its better setting, the lower of 64 and 128 streams",
        ">=",
        4.5,
        _throughput_over(engine_comparison.SERVE_LLM, engine_comparison.SERVE_LLM_UNBATCHED, workloads=_CROWDS),
    ),
    Goal("path.added_ttft_ms", "TTFT p50 of neox-serve minus AsyncLLM in process, one stream, ms", "<=", 3.0, _added_ttft_ms),
    Goal(
        "path.cpu_over_openai_server",
        "CPU a token of the whole system over vLLM's OpenAI server, 64 streams",
        "<=",
        1.0,
        _cpu_over_openai_server,
    ),
    Goal(
        "path.start_over_openai_server",
        "time from start to first token over vLLM's OpenAI server alone",
        "<=",
        1.3,
        lambda runs: runs.engines().start_ratio(engine_comparison.NEOX, engine_comparison.OPENAI).median,
    ),
    Goal(
        "path.router_decisions_per_s",
        "admissions a second that the router's core decides on one core, 1,000 replicas",
        ">=",
        5000.0,
        lambda runs: runs.router().decisions_per_s,
    ),
    Goal("path.router_decision_p99_ms", "one such decision, p99, ms", "<", 2.0, lambda runs: 1e3 * runs.router().p99_s),
    Goal(
        "path.fake_over_bare_grpc",
        "tok/s of neox-serve over a bare grpc.aio server, fake engine, 256 streams",
        ">=",
        0.9,
        lambda runs: runs.ladder().fake_over_bare_grpc().median,
    ),
    Goal(
        "path.stalled_client_lag",
        "p99 token lag of 64 streams beside a client that never reads over that without it",
        "<=",
        1.2,
        lambda runs: runs.ladder().stalled_over_healthy_lag().median,
    ),
    Goal(
        "tenants.jains_index",
        "Jain's index of five backlogged tenants of equal weight, simulated",
        ">=",
        0.98,
        lambda _: fairness.jains_index(),
    ),
    Goal(
        "tenants.compliant_p99_ttft",
        "p99 TTFT of a compliant tenant beside one at 10 x its quota, over that without it, simulated",
        "<=",
        1.25,
        lambda _: fairness.compliant_p99_ttft_ratio(),
    ),
    Goal(
        "tenants.throughput_cost",
        "share of the throughput of first come, first served that fairness costs, simulated",
        "<",
        0.03,
        lambda _: fairness.throughput_cost(),
    ),
    Goal(
        "overload.simulated_goodput_at_4x",
        "answers in time at 4 x the capacity over the most at any load, simulated",
        ">=",
        0.9,
        lambda _: fairness.goodput_at_4x(),
    ),
    Goal(
        "overload.goodput_at_4x",
        "the same over real gRPC with the fake engine",
        ">=",
        0.9,
        lambda runs: runs.overload().goodput_over_peak,
    ),
    Goal(
        "overload.refusal_p99_ms",
        "from a call at 4 x the capacity to its refusal, p99, ms",
        "<",
        50.0,
        lambda runs: 1e3 * runs.overload().refusal_p99_s,
    ),
    Goal(
        "overload.grown_mib",
        "memory that 10 s more at 4 x the capacity take, MiB",
        "<=",
        16.0,
        lambda runs: runs.overload().grown_mib,
    ),
    Goal(
        "routing.hits_over_ideal",
        "prefix hits of kv-aware over one cache without bounds, Mooncake's recording, 8 simulated replicas",
        ">=",
        0.95,
        lambda _: mooncake.compare().hits_over_ideal,
    ),
    Goal(
        "routing.ttft_p90_over_min_tokens",
        "TTFT p90 of kv-aware over least-tokens' there",
        "<=",
        0.5,
        lambda _: mooncake.compare().ttft_p90_over_min_tokens,
    ),
    Goal(
        "routing.ttft_p90_over_round_robin",
        "TTFT p90 of kv-aware over round robin's there",
        "<=",
        0.5,
        lambda _: mooncake.compare().ttft_p90_over_round_robin,
    ),
    Goal(
        "routing.highest_load",
        "load of the most loaded replica over the mean there",
        "<=",
        1.5,
        lambda _: mooncake.compare().kv_aware.highest_load,
    ),
    Goal(
        "routing.decision_p99_ms",
        "one decision of kv-aware among 1,000 replicas with a million blocks, p99, ms",
        "<",
        2.0,
        lambda runs: 1e3 * runs.router().p99_s,
    ),
    Goal(
        "routing.bytes_per_block", "memory of the router's index for each of a million blocks", "<=", 128.0, lambda _: block_bytes.measure()
    ),
    Goal(
        "scaling.simulated_ttft_error",
        "median TTFT simulated and of our own cluster, relative, the larger of two loads",
        "<=",
        0.15,
        lambda runs: scaling_validation.ttft_error(runs.validation()),
    ),
    Goal(
        "scaling.simulated_tpot_error",
        "median TPOT simulated and of our own cluster, relative, the larger of two loads",
        "<=",
        0.15,
        lambda runs: scaling_validation.tpot_error(runs.validation()),
    ),
    Goal(
        "bulk.over_offline",
        "tok/s of a bulk job through the cluster over vLLM's LLM.generate, same engine settings",
        ">=",
        0.95,
        lambda runs: runs.bulk().over_offline,
    ),
    Goal(
        "bulk.own_over_offline",
        "the same of a job with an engine of its own",
        ">=",
        0.95,
        lambda runs: runs.bulk().own_over_offline,
    ),
    Goal(
        "bulk.own_over_ray_data",
        "the same over Ray's batch inference, ray.data.llm, same engine settings",
        ">=",
        1.0,
        lambda runs: runs.bulk().own_over_ray_data,
    ),
    Goal(
        "bulk.interactive_ttft",
        "p99 TTFT of callers who wait, with a bulk job that fills the rest over without",
        "<=",
        1.25,
        lambda runs: runs.bulk().ttft_ratio,
    ),
    Goal("embed.half_layers_time", "time for vectors of half of the layers over all of them", "<", 0.8, lambda runs: runs.layers().time),
    Goal("embed.half_layers_memory", "parameters loaded for them over all", "<", 0.8, lambda runs: runs.layers().memory),
    Goal("embed.layer_error", "largest difference from transformers' hidden states, relative", "<", 2e-3, lambda runs: runs.layers().error),
    Goal("finetune.accuracy_before", "of the built-in model on a task, before", "<", 0.1, lambda runs: runs.life_cycle().accuracy_before),
    Goal(
        "finetune.accuracy_after",
        "the same with the adapter that a job has trained, through the gateway",
        ">",
        0.9,
        lambda runs: runs.life_cycle().accuracy_after,
    ),
    Goal(
        "finetune.parameters_fraction",
        "parameters of that adapter over the model's",
        "<",
        0.01,
        lambda runs: runs.life_cycle().parameters_fraction,
    ),
    Goal(
        "evaluate.likelihood_error",
        "largest error of a log-likelihood against the harness with transformers",
        "<",
        1e-3,
        lambda runs: runs.life_cycle().likelihood_error,
    ),
    Goal(
        "evaluate.different_texts",
        "greedy texts that differ from those of the harness with transformers",
        "<=",
        0.0,
        lambda runs: runs.life_cycle().different_texts,
    ),
    Goal(
        "quantize.w8a8_quality",
        "held-out bits per byte before over after, 8 bits",
        ">=",
        0.99,
        lambda runs: runs.life_cycle().quality["w8a8"],
    ),
    Goal(
        "quantize.w4a16_quality",
        "held-out bits per byte before over after, 4 bits",
        ">=",
        0.95,
        lambda runs: runs.life_cycle().quality["w4a16"],
    ),
    *scaling_goals.GOALS,
)
LONG_GOALS: tuple[Goal, ...] = scaling_goals.LONG_GOALS


def holds(goal: Goal, value: float) -> bool:
    """Whether a figure meets its goal."""
    return OPERATORS[goal.op](value, goal.target)


def measured_line(goal: Goal, value: float) -> str:
    """A goal's line, with as many digits as it takes to see which side of the target the figure is on."""
    shown = next((text for digits in (3, 4, 5) if holds(goal, float(text := f"{value:.{digits}g}")) == holds(goal, value)), repr(value))
    return f"goal {goal.id} {shown} {goal.op} {goal.target:g} {'ok' if holds(goal, value) else 'short'}"


def unmeasured_line(goal: Goal, reason: str) -> str:
    """The line of a goal without a figure. reason: shown on the same line, shortened where it is long."""
    return f"goal {goal.id} unmeasured {goal.op} {goal.target:g} short ({shorten(reason, _REASON_CHARACTERS, placeholder=' ...')})"


def measure_all(goals: Sequence[Goal], runs: Runs, tell: Callable[[str], None]) -> bool:
    """Tells each goal's line as soon as it is known; whether all hold."""
    held = True
    for goal in goals:
        try:
            value = goal.measure(runs)
        except Exception as error:  # noqa: BLE001 - a figure that cannot be had is a short goal, and the others are still measured
            tell(unmeasured_line(goal, f"{type(error).__name__}: {error}"))
            held = False
        else:
            tell(measured_line(goal, value))
            held = held and holds(goal, value)
    return held


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.goals", description="Measures the goals and prints one line for each.")
    known = [*GOALS, *LONG_GOALS]
    parser.add_argument(
        "--only", action="append", metavar="ID", choices=[goal.id for goal in known], help="measure this goal; may be repeated"
    )
    parser.add_argument("--long", action="store_true", help="those that take longer than ten minutes each, instead of the others")
    parser.add_argument("--list", action="store_true", help="say what the goals are and measure nothing")
    chosen = parser.parse_args(arguments)
    goals = [goal for goal in known if goal.id in chosen.only] if chosen.only else list(LONG_GOALS if chosen.long else GOALS)
    if chosen.list:
        for goal in goals:
            print(f"{goal.id}  {goal.op} {goal.target:g}  {goal.measures}")
        return 0
    runs = Runs(results.new_folder("goals"), View())
    return 0 if measure_all(goals, runs, lambda line: print(line, flush=True)) else 1


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(main())
