"""The goals, one row each. Where no run measures the value of a new goal yet, add a method to `goal_runs.Runs`."""

from collections.abc import Callable, Sequence

from tests.bench.engines import builtin_model, engine_comparison, fake_comparison
from tests.bench.goal import Goal
from tests.bench.goal_runs import Runs
from tests.bench.router import block_bytes
from tests.bench.scaling import goals as scaling_goals
from tests.bench.scaling import validation as scaling_validation
from tests.simulation import fairness, mooncake


def _throughput_over(*others: str, workloads: Sequence[str] = (engine_comparison.MANY,)) -> Callable[[Runs], float]:
    """Returns a measurement of neox-serve's tok/s relative to other systems: the lowest ratio over all systems and workloads."""

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


_LOADED = (engine_comparison.MANY, engine_comparison.MOST)

GOALS: tuple[Goal, ...] = (
    Goal(
        "spine.gateway_over_openai_server_64",
        "throughput relative to vLLM's OpenAI server with the same engine settings, 64 streams",
        ">=",
        0.80,
        _throughput_over(engine_comparison.OPENAI),
    ),
    Goal(
        "spine.fake_over_serve_handle",
        "throughput relative to a Serve handle, fake engine, 256 streams",
        ">=",
        4.0,
        _fake_over_serve_handle,
    ),
    Goal("spine.added_ttft_ms", "TTFT p50 minus that of AsyncLLM in process, one stream, ms", "<=", 10.0, _added_ttft_ms),
    Goal(
        "spine.free_after_cancel_p99_ms",
        "time from a cancellation, deadline or client disconnect until the engine is free, p99, ms",
        "<=",
        250.0,
        lambda runs: 1e3 * runs.cancellation().p99_s,
    ),
    Goal(
        "spine.roll_longest_gap_s",
        "longest gap in eight streams during a rolling update of an engine setting, s",
        "<=",
        0.5,
        lambda runs: runs.rolling().longest_gap_s,
    ),
    Goal(
        "spine.builtin_bits_per_byte_over_xz",
        "held-out bits per byte of the built-in model relative to xz -9e",
        "<",
        1.0,
        Runs.bits_per_byte_over_xz,
    ),
    Goal("spine.builtin_model_mib", "size of the built-in model's folder, MiB", "<=", 16.0, lambda _: builtin_model.size_mib()),
    Goal(
        "path.over_openai_server",
        "throughput relative to vLLM's OpenAI server, the lower of 64 and 128 streams",
        ">=",
        1.0,
        _throughput_over(engine_comparison.OPENAI, workloads=_LOADED),
    ),
    Goal(
        "path.over_async_llm",
        "throughput relative to AsyncLLM in process, the lower of 64 and 128 streams",
        ">=",
        0.85,
        _throughput_over(engine_comparison.ASYNC_LLM, workloads=_LOADED),
    ),
    Goal(
        "path.over_serve_llm",
        "throughput relative to the better configuration of ray.serve.llm, the lower of 64 and 128 streams",
        ">=",
        4.5,
        _throughput_over(engine_comparison.SERVE_LLM, engine_comparison.SERVE_LLM_UNBATCHED, workloads=_LOADED),
    ),
    Goal("path.added_ttft_ms", "TTFT p50 minus that of AsyncLLM in process, one stream, ms", "<=", 3.0, _added_ttft_ms),
    Goal(
        "path.cpu_over_openai_server",
        "CPU time per token of the whole system relative to vLLM's OpenAI server, 64 streams",
        "<=",
        1.0,
        _cpu_over_openai_server,
    ),
    Goal(
        "path.start_over_openai_server",
        "time from start to first token relative to vLLM's OpenAI server",
        "<=",
        1.3,
        lambda runs: runs.engines().start_ratio(engine_comparison.NEOX, engine_comparison.OPENAI).median,
    ),
    Goal(
        "path.router_decisions_per_s",
        "admission decisions per second of the router's core, one CPU core, 1,000 replicas",
        ">=",
        5000.0,
        lambda runs: runs.router().decisions_per_s,
    ),
    Goal("path.router_decision_p99_ms", "duration of one admission decision, p99, ms", "<", 2.0, lambda runs: 1e3 * runs.router().p99_s),
    Goal(
        "path.fake_over_bare_grpc",
        "throughput relative to a bare grpc.aio server, fake engine, 256 streams",
        ">=",
        0.9,
        lambda runs: runs.ladder().fake_over_bare_grpc().median,
    ),
    Goal(
        "path.stalled_client_lag",
        "p99 token lag of 64 streams with a client that never reads, relative to the lag without it",
        "<=",
        1.2,
        lambda runs: runs.ladder().stalled_over_healthy_lag().median,
    ),
    Goal(
        "tenants.jains_index",
        "Jain's fairness index of five backlogged tenants with equal weights, simulated",
        ">=",
        0.98,
        lambda _: fairness.jains_index(),
    ),
    Goal(
        "tenants.compliant_p99_ttft",
        "p99 TTFT of a compliant tenant with another at 10 x its quota, relative to that without it, simulated",
        "<=",
        1.25,
        lambda _: fairness.compliant_p99_ttft_ratio(),
    ),
    Goal(
        "tenants.throughput_cost",
        "loss of throughput through fairness relative to first come, first served, simulated",
        "<",
        0.03,
        lambda _: fairness.throughput_cost(),
    ),
    Goal(
        "overload.simulated_goodput_at_4x",
        "goodput at 4 x the capacity relative to the highest goodput at any load, simulated",
        ">=",
        0.9,
        lambda _: fairness.goodput_at_4x(),
    ),
    Goal(
        "overload.goodput_at_4x",
        "goodput at 4 x the capacity relative to the highest goodput, real gRPC, fake engine",
        ">=",
        0.9,
        lambda runs: runs.overload().goodput_over_peak,
    ),
    Goal(
        "overload.refusal_p99_ms",
        "time from a call to its refusal at 4 x the capacity, p99, ms",
        "<",
        50.0,
        lambda runs: 1e3 * runs.overload().refusal_p99_s,
    ),
    Goal(
        "overload.grown_mib",
        "growth of memory in 10 s at 4 x the capacity, MiB",
        "<=",
        16.0,
        lambda runs: runs.overload().grown_mib,
    ),
    Goal(
        "routing.hits_over_ideal",
        "prefix hits of kv-aware relative to one unlimited cache, Mooncake's trace, 8 simulated replicas",
        ">=",
        0.95,
        lambda _: mooncake.compare().hits_over_ideal,
    ),
    Goal(
        "routing.ttft_p90_over_min_tokens",
        "TTFT p90 of kv-aware relative to least-tokens, same simulation",
        "<=",
        0.5,
        lambda _: mooncake.compare().ttft_p90_over_min_tokens,
    ),
    Goal(
        "routing.ttft_p90_over_round_robin",
        "TTFT p90 of kv-aware relative to round robin, same simulation",
        "<=",
        0.5,
        lambda _: mooncake.compare().ttft_p90_over_round_robin,
    ),
    Goal(
        "routing.highest_load",
        "load of the most loaded replica relative to the mean, same simulation",
        "<=",
        1.5,
        lambda _: mooncake.compare().kv_aware.highest_load,
    ),
    Goal(
        "routing.decision_p99_ms",
        "duration of one kv-aware decision among 1,000 replicas with a million blocks, p99, ms",
        "<",
        2.0,
        lambda runs: 1e3 * runs.router().p99_s,
    ),
    Goal(
        "routing.bytes_per_block",
        "memory of the router's index per block, with a million blocks, bytes",
        "<=",
        128.0,
        lambda _: block_bytes.measure(),
    ),
    Goal(
        "scaling.simulated_ttft_error",
        "relative error of the simulated median TTFT against a real cluster, the larger of two loads",
        "<=",
        0.15,
        lambda runs: scaling_validation.ttft_error(runs.validation()),
    ),
    Goal(
        "scaling.simulated_tpot_error",
        "relative error of the simulated median TPOT against a real cluster, the larger of two loads",
        "<=",
        0.15,
        lambda runs: scaling_validation.tpot_error(runs.validation()),
    ),
    Goal(
        "bulk.over_offline",
        "throughput of a bulk job through the cluster relative to vLLM's LLM.generate, same engine settings",
        ">=",
        0.95,
        lambda runs: runs.bulk().over_offline,
    ),
    Goal(
        "bulk.own_over_offline",
        "throughput of a bulk job with its own engine relative to vLLM's LLM.generate",
        ">=",
        0.95,
        lambda runs: runs.bulk().own_over_offline,
    ),
    Goal(
        "bulk.own_over_ray_data",
        "throughput of a bulk job with its own engine relative to ray.data.llm, same engine settings",
        ">=",
        1.0,
        lambda runs: runs.bulk().own_over_ray_data,
    ),
    Goal(
        "bulk.interactive_ttft",
        "p99 TTFT of interactive requests with a bulk job in the background, relative to that without one",
        "<=",
        1.25,
        lambda runs: runs.bulk().ttft_ratio,
    ),
    Goal(
        "embed.half_layers_time",
        "time of embeddings from half of the layers relative to all layers",
        "<",
        0.8,
        lambda runs: runs.layers().time,
    ),
    Goal(
        "embed.half_layers_memory",
        "parameters loaded for half of the layers relative to all layers",
        "<",
        0.8,
        lambda runs: runs.layers().memory,
    ),
    Goal(
        "embed.layer_error",
        "largest relative difference from the hidden states of transformers",
        "<",
        2e-3,
        lambda runs: runs.layers().error,
    ),
    Goal(
        "finetune.accuracy_before",
        "accuracy of the built-in model on a task before fine-tuning",
        "<",
        0.1,
        lambda runs: runs.life_cycle().accuracy_before,
    ),
    Goal(
        "finetune.accuracy_after",
        "accuracy with the adapter that a job has trained, through the gateway",
        ">",
        0.9,
        lambda runs: runs.life_cycle().accuracy_after,
    ),
    Goal(
        "finetune.parameters_fraction",
        "parameters of the adapter relative to those of the model",
        "<",
        0.01,
        lambda runs: runs.life_cycle().parameters_fraction,
    ),
    Goal(
        "evaluate.likelihood_error",
        "largest difference of a log-likelihood from the harness with transformers",
        "<",
        1e-3,
        lambda runs: runs.life_cycle().likelihood_error,
    ),
    Goal(
        "evaluate.different_texts",
        "number of greedy texts that differ from those of the harness with transformers",
        "<=",
        0.0,
        lambda runs: runs.life_cycle().different_texts,
    ),
    Goal(
        "quantize.w8a8_quality",
        "held-out bits per byte before quantization relative to after, 8 bits",
        ">=",
        0.99,
        lambda runs: runs.life_cycle().quality["w8a8"],
    ),
    Goal(
        "quantize.w4a16_quality",
        "held-out bits per byte before quantization relative to after, 4 bits",
        ">=",
        0.95,
        lambda runs: runs.life_cycle().quality["w4a16"],
    ),
    *scaling_goals.GOALS,
)
"""Goals that `make goals` measures."""
LONG_GOALS: tuple[Goal, ...] = scaling_goals.LONG_GOALS
"""Goals that take longer than ten minutes each, which `make goals-long` measures."""
