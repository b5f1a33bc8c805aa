"""The compared systems. Each has a context manager that starts and stops all its processes. Only one system runs at a time.

All serve the same checkpoint with the same engine settings: those of neox-serve's settings file, translated to flags if a system needs
flags.
"""

import json
import secrets
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from neox_serve.core.types import Pool
from neox_serve.engine.environment import engine_environment
from neox_serve.engine.hardware import dtype_for, this_machine
from neox_serve.engine.pools import executor_backend
from neox_serve.loadgen.processes import family
from neox_serve.loadgen.targets import TargetSpec
from neox_serve.loadgen.targets.grpc_gateway import GatewaySpec
from neox_serve.loadgen.targets.openai_server import OpenAiSpec
from neox_serve.model.model_files import locate
from neox_serve.settings import Settings, restore
from neox_serve.settings.slices import PoolEngineSettings
from tests.bench.engines.targets.async_llm import AsyncLlmSpec
from tests.bench.engines.targets.serve_handle import ServeHandleSpec
from tests.bench.engines.targets.vllm_grpc import VllmGrpcSpec
from tests.bench.processes import system_process, wait_for
from tests.clusters import free_port, running_cluster

_START_S = 300.0

DEFAULTS_ENVIRONMENT: Mapping[str, str] = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""Size of the KV cache in GiB, the only engine setting of systems with defaults. Otherwise, vLLM uses 92% of the machine's memory."""

Values = Mapping[str, Any]
"""Values of a settings file."""


def _environment(settings: Settings) -> dict[str, str]:
    return engine_environment(PoolEngineSettings.from_settings(settings, Pool.GENERATION))


@dataclass(frozen=True, slots=True)
class Running:
    """A running system."""

    target: TargetSpec
    """How the load generator connects to it."""
    processes: Callable[[], list[psutil.Process]] | None
    """Returns the system's processes; None if it runs within the load generator."""
    client_environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that the load generator's process needs."""


class System(Protocol):
    """A serving system."""

    @property
    def name(self) -> str:
        """Name in tables."""

    def running(self, folder: Path) -> AbstractContextManager[Running]:
        """Runs the system until the end of the block, with its files in the folder. Raises StartError if it does not start."""


@dataclass(frozen=True, slots=True)
class NeoxServe:
    """The complete neox-serve on its own Ray cluster, started by `neox-serve up`."""

    values: Values
    """Settings."""
    name: str = "neox-serve"
    """Name in tables."""
    channels: int = 1
    """Number of the load generator's connections."""
    defaults: bool = False
    """Whether to use the defaults instead of the settings."""

    @contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        """Runs one gateway and one engine replica unless the settings differ."""
        values = default_cluster_values() if self.defaults else cluster_values(self.values)
        with running_cluster(folder, values) as cluster:
            yield Running(GatewaySpec(cluster.address, self.channels), cluster.family)


@dataclass(frozen=True, slots=True)
class OpenAiServer:
    """vLLM's OpenAI server: `python -m vllm.entrypoints.openai.api_server`."""

    values: Values
    """Settings."""
    name: str = "vLLM OpenAI server"
    """Name in tables."""
    defaults: bool = False
    """Whether to use vLLM's defaults instead of the engine settings."""

    @contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        """Runs the server with flags equivalent to the settings."""
        settings, port, log = restore(dict(self.values)), free_port(), folder / "openai.log"
        flags = ["--host", "127.0.0.1", *flags_of(_named(settings))] if self.defaults else openai_server_flags(settings)
        command = ["-m", "vllm.entrypoints.openai.api_server", *flags, "--port", str(port)]
        url = f"http://127.0.0.1:{port}"
        environment = DEFAULTS_ENVIRONMENT if self.defaults else _environment(settings)
        with system_process(command, environment, log) as process:
            wait_for(lambda: _answers(f"{url}/health"), process, log, _START_S, self.name)
            yield Running(OpenAiSpec(url, settings.model.name), lambda: family(process))


@dataclass(frozen=True, slots=True)
class VllmGrpcServer:
    """vLLM's gRPC server: `python -m vllm.entrypoints.launchers.grpc_server`. It sends token ids, which clients must decode."""

    values: Values
    """Settings."""
    name: str = "vLLM gRPC server"
    """Name in tables."""

    @contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        """Runs the server with flags equivalent to the settings."""
        settings, port, log = restore(dict(self.values)), free_port(), folder / "vllm-grpc.log"
        command = ["-m", "vllm.entrypoints.launchers.grpc_server", *engine_flags(settings), "--host", "127.0.0.1", "--port", str(port)]
        with system_process(command, _environment(settings), log) as process:
            wait_for(lambda: _listens(port), process, log, _START_S, self.name)
            yield Running(VllmGrpcSpec(f"127.0.0.1:{port}"), lambda: family(process))


@dataclass(frozen=True, slots=True)
class RayServeLlm:
    """`ray.serve.llm`: `build_openai_app` behind Serve's HTTP proxy."""

    values: Values
    """Settings."""
    name: str = "ray.serve.llm"
    """Name in tables."""
    batching_ms: float | None = None
    """Interval in which chunks are batched, in ms; None for the default of 50."""
    defaults: bool = False
    """Whether to use the defaults instead of the engine settings."""

    @contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        """Runs one replica with engine arguments equivalent to the settings."""
        settings, port, log = restore(dict(self.values)), free_port(), folder / "serve-llm.log"
        arguments_file = folder / "llm-config.json"
        arguments = serve_llm_defaults(settings) if self.defaults else serve_llm_arguments(settings, self.batching_ms)
        arguments_file.write_text(json.dumps(arguments), encoding="utf-8")
        command = ["-m", "tests.bench.engines.serve_llm_host", str(arguments_file), str(port)]
        url = f"http://127.0.0.1:{port}"
        environment = DEFAULTS_ENVIRONMENT if self.defaults else _environment(settings)
        with system_process(command, environment, log) as process:
            wait_for(lambda: _answers(f"{url}/v1/models"), process, log, _START_S, self.name)
            yield Running(OpenAiSpec(url, settings.model.name), lambda: family(process))


@dataclass(frozen=True, slots=True)
class AsyncLlm:
    """vLLM's AsyncLLM within the load generator's process, without a network or processes other than the engine's."""

    values: Values
    """Settings."""
    name: str = "AsyncLLM in process"
    """Name in tables."""

    @contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        """Starts nothing, because the load generator starts the engine."""
        settings = restore(dict(self.values))
        yield Running(
            AsyncLlmSpec(settings.model_dump(mode="json")),
            None,
            _environment(settings),
        )


@dataclass(frozen=True, slots=True)
class ServeHandle:
    """A Serve deployment that contains the fake engine, called through its handle."""

    values: Values
    """Settings."""
    name: str = "Ray Serve handle"
    """Name in tables."""

    @contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        """Runs a separate Ray cluster with its own token. It has two drivers: the deployment and the load generator."""
        settings_file, address_file, log = folder / "settings.json", folder / "gcs-address", folder / "serve-handle.log"
        address_file.unlink(missing_ok=True)
        settings_file.write_text(json.dumps(restore(dict(self.values)).model_dump(mode="json")), encoding="utf-8")
        command = ["-m", "tests.bench.engines.serve_handle_host", str(settings_file), str(address_file)]
        with _ray_token(folder) as environment, system_process(command, environment, log) as process:
            wait_for(address_file.exists, process, log, _START_S, self.name)
            yield Running(ServeHandleSpec(address_file.read_text(encoding="utf-8")), lambda: family(process), environment)


@contextmanager
def _ray_token(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the environment variables of the cluster's drivers. Ray requires a token by default, which is deleted at the end of the
    block."""
    token = folder / "ray-token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    try:
        yield {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    finally:
        token.unlink()


def cluster_values(values: Values) -> dict[str, Any]:
    """Returns settings with free ports and, unless the values differ, one replica, one gateway and no embedding pool."""
    one = {"min": 1, "initial": 1, "max": 1, "max_requests": 4096}
    return {
        **values,
        "generation": {"replicas": one, **values.get("generation", {})},
        "embedding": values.get("embedding", {"enabled": False}),
        "gateway": {"processes": 1, "max_concurrent_requests": 4096, "port": free_port(), **values.get("gateway", {})},
        "metrics": {"port": free_port()},
        "ray": {"dashboard_port": free_port()},
        "log": {"level": "warning"},
    }


def default_cluster_values() -> dict[str, Any]:
    """Returns default settings with free ports."""
    return {"gateway": {"port": free_port()}, "metrics": {"port": free_port()}, "ray": {"dashboard_port": free_port()}}


def openai_server_flags(settings: Settings) -> list[str]:
    """Returns flags of vLLM's OpenAI server for the same engine as `build_engine_arguments`, on CPUs, without a request log."""
    flags = ["--host", "127.0.0.1", "--generation-config", "vllm", "--uvicorn-log-level", "warning", "--disable-uvicorn-access-log"]
    return [*flags, *engine_flags(settings)]


def engine_flags(settings: Settings) -> list[str]:
    """Returns the engine flags that all of vLLM's servers share, on CPUs."""
    return flags_of(engine_values(settings))


def flags_of(values: Mapping[str, Any]) -> list[str]:
    """Returns arguments in the form of vLLM's command line."""
    flags: list[str] = []
    for argument, value in values.items():
        name = argument.replace("_", "-")
        match value:
            case bool():
                flags.append(f"--{name}" if value else f"--no-{name}")
            case _:
                flags += [f"--{name}", str(value)]
    return flags


def engine_values(settings: Settings) -> dict[str, Any]:
    """Returns vLLM's engine arguments on CPUs, without those that the settings leave to vLLM. All systems keep vLLM's metrics."""
    engine = settings.generation.engine
    values = {
        **_named(settings),
        "dtype": dtype_for(engine.dtype, this_machine().cpu_flags, on_gpu=False),
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "distributed_executor_backend": executor_backend(engine, settings.generation.replicas),
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "block_size": engine.block_size,
        "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30),
        "enable_prefix_caching": engine.enable_prefix_caching,
        "enforce_eager": engine.enforce_eager is not False,
    }
    return {argument: value for argument, value in values.items() if value is not None}


def _named(settings: Settings) -> dict[str, Any]:
    """Returns the arguments that name the model."""
    folder = str(locate(settings.model.source, settings.model.revision))
    return {"model": folder, "tokenizer": folder, "served_model_name": settings.model.name}


def serve_llm_defaults(settings: Settings) -> dict[str, Any]:
    """Returns arguments of `ray.serve.llm.LLMConfig` with the model, no GPU, and the size of the KV cache."""
    named = _named(settings)
    return {
        "model_loading_config": {"model_id": named["served_model_name"], "model_source": named["model"]},
        "accelerator_config": {"kind": "cpu"},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "runtime_env": {"env_vars": dict(DEFAULTS_ENVIRONMENT)},
    }


def serve_llm_arguments(settings: Settings, batching_ms: float | None) -> dict[str, Any]:
    """Returns arguments of `ray.serve.llm.LLMConfig` for one replica on CPUs. It names the model and chooses the mp executor itself."""
    engine = engine_values(settings)
    named = {"model", "served_model_name", "distributed_executor_backend"}
    environment = _environment(settings)
    return {
        "model_loading_config": {"model_id": settings.model.name, "model_source": engine["model"]},
        "accelerator_config": {"kind": "cpu"},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 4096},
        "engine_kwargs": {argument: value for argument, value in engine.items() if argument not in named},
        "log_engine_metrics": False,
        "experimental_configs": {} if batching_ms is None else {"stream_batching_interval_ms": batching_ms},
        "runtime_env": {"env_vars": environment},
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
