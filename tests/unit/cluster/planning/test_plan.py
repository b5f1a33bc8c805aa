"""Planning of GPUs: layouts that fit, their expected latencies, and reasons for rejecting the others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cluster.cli import app
from cluster.planning.plan import GPUS, NEOX_20B, Layout, Load, PlanRequest, indivisible, kv_cache_tokens, plan, serve_settings
from neox_serve.model.memory import Quantization, kv_bytes_per_token, parameters, weight_bytes
from neox_serve.settings import parse

LOAD = Load(rate=5, input_tokens=600, output_tokens=200)
BUILT_IN = Path(__file__).parents[4] / "neox_serve" / "builtin_model"


def plan_request(gpus: dict[str, int], load: Load = LOAD, quantizations: tuple[Quantization, ...] = (Quantization.NONE,)) -> PlanRequest:
    return PlanRequest(NEOX_20B, load, gpus, 2048, quantizations)


def test_20b_sizes_match_the_published_figures() -> None:
    assert parameters(NEOX_20B) == 20_554_567_680
    assert kv_bytes_per_token(NEOX_20B) == 1_081_344
    published = {Quantization.NONE: 41.1e9, Quantization.INT8: 21.2e9, Quantization.INT4: 11.6e9}
    for quantization, expected in published.items():
        assert weight_bytes(NEOX_20B, quantization) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("gpu", "quantization", "sequences"),
    [
        ("a100-80", "none", (15, 49, 116, 251)),
        ("h100-80", "none", (15, 49, 116, 251)),
        ("a100-80", "int8", (24, 58, 125, 260)),
        ("a100-80", "int4", (28, 62, 130, 265)),
        ("a10", "none", (0, 0, 17, 52)),
        ("l4", "none", (0, 0, 17, 52)),
    ],
)
def test_kv_cache_20b_on_known_gpus_holds_the_known_number_of_sequences(gpu: str, quantization: str, sequences: tuple[int, ...]) -> None:
    for size, expected in zip((1, 2, 4, 8), sequences, strict=True):
        found = max(0, kv_cache_tokens(plan_request({gpu: 8}), Layout(gpu, Quantization(quantization), size, 1))) / 2048
        assert int(found) == pytest.approx(expected, rel=0.02) or abs(found - expected) < 1


def test_plan_rejected_layouts_name_the_missing_memory_or_the_indivisible_part() -> None:
    reasons = {str(one.layout): one.reason for one in plan(plan_request({"a10": 4})).rejected}
    assert "GiB more memory per GPU" in reasons["a10 TP=1 none"]
    split = Layout("a10", Quantization.NONE, 4, 1)
    assert indivisible(replace(NEOX_20B, heads=6), split) == "6 heads are not divisible by tensor_parallel_size 4"
    assert "layers are not divisible" in indivisible(replace(NEOX_20B, layers=45), Layout("a10", Quantization.NONE, 1, 2))


def test_plan_weights_too_slow_to_read_are_rejected_with_the_time() -> None:
    slow = plan(plan_request({"a10": 4}, Load(0.1, 600, 200, tpot_s=0.01)))
    assert any("reading the weights takes" in one.reason for one in slow.rejected)


def test_plan_without_a_layout_names_an_alternative() -> None:
    found = plan(plan_request({"a10": 2}))
    assert found.best is None
    assert found.alternative.startswith(("With another quantization", "With more GPUs"))


@given(
    rate=st.floats(0.1, 100),
    lengths=st.tuples(st.integers(1, 1500), st.integers(1, 500)),
    gpu=st.sampled_from(sorted(GPUS)),
    count=st.integers(1, 16),
)
def test_plan_every_planned_layout_fits_and_meets_the_targets(rate: float, lengths: tuple[int, int], gpu: str, count: int) -> None:
    found = plan(plan_request({gpu: count}, Load(rate, *lengths), tuple(Quantization)))
    for one in found.planned:
        assert indivisible(NEOX_20B, one.layout) == ""
        assert one.sequences >= 1
        assert one.gpus <= count
        assert one.tpot_s <= LOAD.tpot_s
        assert one.ttft_s <= LOAD.ttft_s
    assert bool(found.planned) != bool(found.alternative)


@given(rate=st.floats(0.1, 50), count=st.integers(1, 15))
def test_plan_more_gpus_never_cost_more_for_the_same_load(rate: float, count: int) -> None:
    load = Load(rate, 600, 200)
    few, many = plan(plan_request({"a100-80": count}, load)).best, plan(plan_request({"a100-80": count + 1}, load)).best
    assert few is None or (many is not None and many.cost <= few.cost)


def test_serve_settings_are_valid_settings() -> None:
    request = plan_request({"a100-80": 8})
    best = plan(request).best
    assert best is not None
    settings = parse(serve_settings(best, request, {"name": "gpt-neox-20b", "source": "EleutherAI/gpt-neox-20b"}))
    assert settings.generation.engine.tensor_parallel_size == best.layout.tensor_parallel_size
    assert settings.generation.replicas.initial == best.replicas
    assert settings.scaling.kv_cache_tokens == best.kv_tokens


def test_plan_command_prints_json_and_writes_settings(tmp_path: Path) -> None:
    config = tmp_path / "plan.yaml"
    done = CliRunner().invoke(app, ["plan", "--json", "--config", str(config), "--gpu", "a100-80=4"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[0])["parameters"] == 20_554_567_680
    assert "tensor_parallel_size" in config.read_text()


def test_plan_command_accepts_any_checkpoint() -> None:
    done = CliRunner().invoke(app, ["plan", "--model", str(BUILT_IN), "--input-tokens", "100", "--output-tokens", "50", "--gpu", "l4=1"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpu", "v100=2"], "v100"),
        (["--gpu", "a10=none"], "a10=NUMBER"),
        (["--model", "/nowhere/config.json"], "/nowhere/config.json"),
        (["--rate", "0"], "rate 0"),
        (["--input-tokens", "3000"], "at most max_model_len, 2048"),
    ],
)
def test_plan_command_invalid_option_is_named(arguments: list[str], named: str) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code != 0
    assert named in done.output + str(done.exception)
