"""Translation of settings into vLLM's configuration, and of vLLM's exceptions into ours. No engine is started."""

import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import vllm
from typer.testing import CliRunner
from vllm.config import VllmConfig
from vllm.v1.engine.async_llm import AsyncLLM

from cluster.cli import app
from neox_serve.core.errors import Reason
from neox_serve.core.types import Pool
from neox_serve.engine.environment import engine_environment
from neox_serve.engine.hardware import Machine
from neox_serve.engine.vllm import arguments as vllm_arguments
from neox_serve.engine.vllm import errors
from neox_serve.model import model_files
from neox_serve.settings import Settings, SettingsError, load, restore
from neox_serve.settings.slices import PoolEngineSettings
from tests.engines import environment, start
from tests.unit.model.test_facts import PUBLISHED_20B

pytestmark = pytest.mark.e2e

SETTINGS_20B = Path(__file__).parents[3] / "deployments" / "config" / "neox-20b.yaml"
AVX2 = Machine(frozenset({"avx2"}), cores=4, memory_bytes=16 << 30)


def config_of(pool: Pool, settings: Settings, folder: Path) -> VllmConfig:
    engine = PoolEngineSettings.from_settings(settings, pool)
    with environment(engine_environment(engine, AVX2)):
        arguments = vllm_arguments.build_engine_arguments(engine, folder, AVX2)
        return vllm_arguments.build_engine_config(pool, arguments)


def settings(pool: Pool, *, gpus: float = 0.0, model: dict[str, Any] | None = None, **engine: Any) -> Settings:
    return restore({"model": model or {}, pool.value: {"engine": engine, "replicas": {"gpus_per_worker": gpus}}})


@pytest.fixture(scope="module")
def gpt_neox_20b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of GPT-NeoX-20B, without weights."""
    folder = tmp_path_factory.mktemp("gpt-neox-20b")
    names = {"architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu_fast", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(PUBLISHED_20B | names))
    return folder


@pytest.mark.parametrize("pool", list(Pool))
def test_vllm_accepts_the_settings_of_gpt_neox_20b_on_two_tensor_parallel_workers(gpt_neox_20b: Path, pool: Pool) -> None:
    config = config_of(pool, load(SETTINGS_20B), gpt_neox_20b)
    assert config.parallel_config.tensor_parallel_size == 2
    assert config.parallel_config.distributed_executor_backend == "mp"
    model = config.model_config
    assert (model.get_num_attention_heads(config.parallel_config), model.get_num_layers(config.parallel_config)) == (32, 44)
    assert (model.get_vocab_size(), model.max_model_len, model.get_head_size()) == (50432, 2048, 96)


def test_arguments_that_vllm_rejects_raise_a_settings_error(gpt_neox_20b: Path) -> None:
    asked = settings(Pool.GENERATION, gpus=1, tensor_parallel_size=3, model={"source": str(gpt_neox_20b)})
    with pytest.raises(SettingsError, match=r"(?s)generation\.engine: vLLM rejects these arguments: .*attention heads"):
        config_of(Pool.GENERATION, asked, gpt_neox_20b)


def test_generation_settings_are_passed_to_vllm() -> None:
    asked = settings(Pool.GENERATION, kv_cache_gib=0.25, block_size=32, max_num_seqs=4, max_model_len=512, extra_arguments={"seed": 7})
    config = config_of(Pool.GENERATION, asked, model_files.locate("builtin", None))
    assert config.cache_config.kv_cache_memory_bytes == 1 << 28
    assert (config.cache_config.block_size, config.scheduler_config.max_num_seqs) == (32, 4)
    assert (config.model_config.max_model_len, config.model_config.seed, str(config.model_config.dtype)) == (512, 7, "torch.float32")
    assert config.model_config.enforce_eager
    assert config.parallel_config.distributed_executor_backend == "uni"
    assert config.structured_outputs_config.backend == "xgrammar"
    assert config.model_config.max_logprobs >= 20


def test_executor_backend_uni_passes_vllms_platform_check() -> None:
    asked = settings(Pool.GENERATION, executor_backend="uni")
    config = config_of(Pool.GENERATION, asked, model_files.locate("builtin", None))
    assert config.parallel_config.distributed_executor_backend == "uni"


def test_embedding_engine_with_mean_pooling_processes_each_input_in_one_step() -> None:
    config = config_of(Pool.EMBEDDING, settings(Pool.EMBEDDING), model_files.locate("builtin", None))
    assert not config.cache_config.enable_prefix_caching
    assert not config.scheduler_config.enable_chunked_prefill
    assert config.scheduler_config.max_num_batched_tokens >= config.model_config.max_model_len == 2048


def test_embedding_engine_with_last_pooling_uses_the_prefix_cache() -> None:
    asked = restore({"embedding": {"default_pooling": "last"}})
    config = config_of(Pool.EMBEDDING, asked, model_files.locate("builtin", None))
    assert config.cache_config.enable_prefix_caching


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        ({"extra_arguments": {"no_such_argument": 1}}, r"extra_arguments\.no_such_argument: is not an argument"),
        ({"extra_arguments": {"tokenizer": "x"}}, r"extra_arguments\.tokenizer: is not allowed"),
        ({"quantization": "four-bit"}, r"quantization: 'four-bit': must be one of .*compressed-tensors"),
    ],
)
def test_names_that_vllm_does_not_know_are_rejected(engine: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=rf"generation\.engine\.{complaint}"):
        config_of(Pool.GENERATION, settings(Pool.GENERATION, **engine), model_files.locate("builtin", None))


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """Makes vLLM raise the returned exception instead of loading a model."""

    class ReachedError(Exception):
        pass

    def load(*_: object, **__: object) -> None:
        raise ReachedError

    monkeypatch.setattr(AsyncLLM, "from_vllm_config", load)
    return ReachedError


INVALID = [
    pytest.param({"max_model_len": 4096}, "max_model_len: 4096", id="our check"),
    pytest.param({"quantization": "four-bit"}, "quantization: 'four-bit'", id="name"),
    pytest.param({"extra_arguments": {"scheduling_policy": "seven"}}, "vLLM rejects these arguments", id="vLLM's check"),
]


@pytest.mark.parametrize("pool", list(Pool))
@pytest.mark.parametrize(("engine", "complaint"), INVALID)
@pytest.mark.usefixtures("reached")
async def test_start_engine_rejects_invalid_settings_before_loading(pool: Pool, engine: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        await start(pool, settings(pool, **engine))
    assert f"{pool.value}.engine" in str(caught.value)
    assert complaint in str(caught.value)


async def test_start_engine_with_valid_settings_loads_the_model(reached: type[Exception]) -> None:
    with pytest.raises(reached):
        await start(Pool.GENERATION, settings(Pool.GENERATION))


@pytest.mark.parametrize(("engine", "complaint"), INVALID)
def test_config_check_of_invalid_settings_names_them(engine: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"generation": {"engine": engine}}))
    with environment({}):
        done = CliRunner().invoke(app, ["config", "check", "--config", str(file)])
    assert done.exit_code == 1, done.output
    assert complaint in done.stderr


@pytest.mark.parametrize("options", [[], ["--set", "embedding.enabled=false"]], ids=["both pools", "one pool"])
def test_config_check_of_the_built_in_model_succeeds(options: list[str]) -> None:
    with environment({}):
        done = CliRunner().invoke(app, ["config", "check", *options])
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("The settings are valid.\n")


def vllm_exceptions() -> set[type[BaseException]]:
    """Returns all exception classes of the vLLM modules that we call, except those about multimodal inputs."""
    names = ["vllm.exceptions", "vllm.v1.engine.exceptions", "vllm.v1.engine.async_llm", "vllm.sampling_params", "vllm.pooling_params"]
    engine = importlib.import_module("vllm.v1.engine")
    names += [f"vllm.v1.engine.{module.name}" for module in pkgutil.iter_modules(engine.__path__)]
    modules = [importlib.import_module(name) for name in names]
    found = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, BaseException)}
    return {kind for kind in found if kind.__module__.startswith(vllm.__name__) and "multimodal" not in kind.__module__}


def test_every_exception_of_vllm_has_a_reason() -> None:
    known = {kind for kind, _ in errors.REASONS}
    assert vllm_exceptions() <= known, "add these to neox_serve.engine.vllm.errors.REASONS"


def test_no_exception_is_listed_after_one_of_its_base_classes() -> None:
    kinds = [kind for kind, _ in errors.REASONS]
    for index, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:index]), kind


def test_unknown_exception_becomes_engine_failed_with_its_message() -> None:
    error = errors.translate(ZeroDivisionError("inside"))
    assert (error.reason, error.message) == (Reason.ENGINE_FAILED, "inside")
