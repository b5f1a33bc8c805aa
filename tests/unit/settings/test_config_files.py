"""Every settings file of the product is valid, and works on the machine that it is intended for."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from deployments.placement import placement_options
from neox_serve.core.types import Pool
from neox_serve.engine.checks import check
from neox_serve.engine.hardware import Machine
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import SettingsError, load, pool_settings
from neox_serve.settings.slices import PoolEngineSettings

FOLDER = Path(__file__).parents[3] / "deployments" / "config"
GIB = 1 << 30

# Source: config.json of EleutherAI/gpt-neox-20b.
NEOX_20B = ModelFacts.from_config(
    {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "vocab_size": 50432,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "eos_token_id": 0,
        "torch_dtype": "float16",
    }
)
GPU_NODE = Machine(cpu_flags=frozenset(), cores=32, memory_bytes=256 * GIB, gpus=8)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_config_file_loads(path: Path) -> None:
    assert load(path).model.source


def test_config_20b_passes_the_engine_checks_on_a_node_with_gpus() -> None:
    settings = load(FOLDER / "neox-20b.yaml")
    for pool in Pool:
        check(PoolEngineSettings.from_settings(settings, pool), NEOX_20B, GPU_NODE)


def test_config_20b_with_an_invalid_tensor_parallel_size_is_rejected() -> None:
    settings = load(FOLDER / "neox-20b.yaml")
    engine = settings.generation.engine.model_copy(update={"tensor_parallel_size": 3})
    wrong = settings.model_copy(update={"generation": settings.generation.model_copy(update={"engine": engine})})
    with pytest.raises(SettingsError, match=r"generation\.engine\.tensor_parallel_size"):
        check(PoolEngineSettings.from_settings(wrong, Pool.GENERATION), NEOX_20B, GPU_NODE)


@pytest.mark.parametrize("pool", [*Pool])
def test_config_20b_places_each_replica_on_two_gpus(pool: Pool) -> None:
    chosen = pool_settings(load(FOLDER / "neox-20b.yaml"), pool)
    assert chosen.engine.workers == 2
    assert placement_options(chosen.engine, chosen.replicas)["ray_actor_options"]["num_gpus"] == 2


def test_config_check_names_the_invalid_setting() -> None:
    done = CliRunner().invoke(app, ["config", "check", "--set", "generation.engine.max_model_len=100000"])
    assert done.exit_code == 1
    assert "generation.engine.max_model_len" in done.stderr
