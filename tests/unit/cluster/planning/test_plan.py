"""Planning GPUs: what fits, what it does, and why the rest does not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cluster.cli import app
from cluster.planning.plan import GPUS, NEOX_20B, Layout, Load, Wish, indivisible, kv_room_tokens, plan, serve_settings
from neox_serve.model.memory import Quantization, kv_bytes_per_token, parameters, weight_bytes
from neox_serve.settings import parse

LOAD = Load(rate=5, input_tokens=600, output_tokens=200)
BUILT_IN = Path(__file__).parents[4] / "neox_serve" / "builtin_model"


def wish(gpus: dict[str, int], load: Load = LOAD, quantizations: tuple[Quantization, ...] = (Quantization.NONE,)) -> Wish:
    return Wish(NEOX_20B, load, gpus, 2048, quantizations)


def test_20b_has_its_published_figures() -> None:
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
def test_20b_sequences_that_fit_are_the_known_ones(gpu: str, quantization: str, sequences: tuple[int, ...]) -> None:
    for size, expected in zip((1, 2, 4, 8), sequences, strict=True):
        found = max(0, kv_room_tokens(wish({gpu: 8}), Layout(gpu, Quantization(quantization), size, 1))) / 2048
        assert int(found) == pytest.approx(expected, rel=0.02) or abs(found - expected) < 1


def test_plan_refusals_say_what_is_missing() -> None:
    reasons = {str(one.layout): one.reason for one in plan(wish({"a10": 4})).refused}
    assert "GiB a GPU short" in reasons["a10 TP=1 none"]
    assert indivisible(replace(NEOX_20B, heads=6), Layout("a10", Quantization.NONE, 4, 1)) == "6 heads cannot be split over 4"
    assert "layers cannot be split" in indivisible(replace(NEOX_20B, layers=45), Layout("a10", Quantization.NONE, 1, 2))


def test_plan_weights_too_slow_to_read_are_refused_with_the_time() -> None:
    slow = plan(wish({"a10": 4}, Load(0.1, 600, 200, tpot_s=0.01)))
    assert any("reading the weights alone takes" in one.reason for one in slow.refused)


def test_plan_that_finds_nothing_names_the_nearest_that_would_do() -> None:
    found = plan(wish({"a10": 2}))
    assert found.best is None
    assert "int" in found.nearest or "more GPUs" in found.nearest


@given(
    rate=st.floats(0.1, 100),
    lengths=st.tuples(st.integers(1, 1500), st.integers(1, 500)),
    gpu=st.sampled_from(sorted(GPUS)),
    count=st.integers(1, 16),
)
def test_every_planned_layout_is_divisible_fits_and_keeps_the_promise(rate: float, lengths: tuple[int, int], gpu: str, count: int) -> None:
    found = plan(wish({gpu: count}, Load(rate, *lengths), tuple(Quantization)))
    for one in found.planned:
        assert indivisible(NEOX_20B, one.layout) == ""
        assert one.sequences >= 1
        assert one.gpus <= count
        assert one.tpot_s <= LOAD.tpot_s
        assert one.ttft_s <= LOAD.ttft_s
    assert bool(found.planned) != bool(found.nearest)


@given(rate=st.floats(0.1, 50), count=st.integers(1, 15))
def test_more_gpus_never_cost_more_for_the_same_load(rate: float, count: int) -> None:
    load = Load(rate, 600, 200)
    few, many = plan(wish({"a100-80": count}, load)).best, plan(wish({"a100-80": count + 1}, load)).best
    assert few is None or (many is not None and many.cost <= few.cost)


def test_settings_of_a_plan_are_what_up_takes() -> None:
    asked = wish({"a100-80": 8})
    best = plan(asked).best
    assert best is not None
    settings = parse(serve_settings(best, asked, {"name": "gpt-neox-20b", "source": "EleutherAI/gpt-neox-20b"}))
    assert settings.generation.engine.tensor_parallel_size == best.layout.tensor_parallel_size
    assert settings.generation.replicas.initial == best.replicas
    assert settings.scaling.kv_cache_tokens == best.kv_tokens


def test_plan_command_tells_json_and_writes_settings(tmp_path: Path) -> None:
    config = tmp_path / "plan.yaml"
    done = CliRunner().invoke(app, ["plan", "--json", "--config", str(config), "--gpu", "a100-80=4"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[0])["parameters"] == 20_554_567_680
    assert "tensor_parallel_size" in config.read_text()


def test_plan_command_takes_any_checkpoint() -> None:
    done = CliRunner().invoke(app, ["plan", "--model", str(BUILT_IN), "--input-tokens", "100", "--output-tokens", "50", "--gpu", "l4=1"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpu", "v100=2"], "v100"),
        (["--gpu", "a10=none"], "a10=NUMBER"),
        (["--model", "/nowhere/config.json"], "/nowhere/config.json"),
        (["--rate", "0"], "rate 0"),
        (["--input-tokens", "3000"], "at most context, 2048"),
    ],
)
def test_plan_command_bad_input_is_named(arguments: list[str], named: str) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code != 0
    assert named in done.output + str(done.exception)
