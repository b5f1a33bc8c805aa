"""The composition of a cluster: every process gets its configured settings, and a change restarts only the processes that read it."""

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.app import EMBEDDING_APPLICATION, GATEWAY_APPLICATION, GENERATION_APPLICATION, applications
from deployments.jobs.controller.commands import RunSettings
from deployments.lookup import ROUTER_APPLICATION
from neox_serve.core.types import Pool
from neox_serve.settings import Settings, pool_settings, restore
from neox_serve.settings.slices import (
    COMPLETE_FILE_SUFFIX,
    GatewayProcessSettings,
    JobControllerSettings,
    JobEngineSettings,
    PoolEngineSettings,
    ReplicaProcessSettings,
    RouterProcessSettings,
    ServedModelSettings,
)
from tests.unit.settings.non_default import leaves, non_default_settings


def composed(settings: Settings) -> dict[str, Any]:
    """The applications by name, as they arrive in Serve's controller."""
    return {application["name"]: application for application in json.loads(json.dumps(applications(settings)))}


def restarted(before: Settings, after: Settings) -> set[str]:
    """The applications that Serve restarts when the settings change: those whose arguments differ."""
    first, second = composed(before), composed(after)
    return {name for name in first if first[name]["args"] != second[name]["args"]}


@pytest.mark.parametrize(("pool", "name"), [(Pool.GENERATION, GENERATION_APPLICATION), (Pool.EMBEDDING, EMBEDDING_APPLICATION)])
def test_replica_gets_every_setting_of_its_engine(pool: Pool, name: str) -> None:
    settings = non_default_settings()
    got = ReplicaProcessSettings.read(composed(settings)[name]["args"])
    section = pool_settings(settings, pool)
    assert (got.engine.pool, got.engine.engine, got.engine.replicas) == (pool, section.engine, section.replicas)
    assert (got.engine.model, got.engine.log, got.engine.state_folder) == (settings.model, settings.log, settings.state_folder)
    assert (got.links, got.tracing, got.link_host) == (settings.links, settings.tracing, settings.router.host)
    assert got.load_report_interval_s == settings.router.load_report_interval_s
    assert got.engine.max_logprobs == max(settings.limits.logprobs, 2 * settings.limits.beam_width)


def test_router_gets_its_settings() -> None:
    settings = non_default_settings()
    got = RouterProcessSettings.read(composed(settings)[ROUTER_APPLICATION]["args"])
    assert (got.router, got.scaling, got.access, got.metrics) == (settings.router, settings.scaling, settings.access, settings.metrics)
    assert (got.links, got.tracing, got.log, got.state_folder) == (settings.links, settings.tracing, settings.log, settings.state_folder)
    assert got.model_name == settings.model.name
    for pool in Pool:
        section = pool_settings(settings, pool)
        assert got.pools[pool].replicas == section.replicas
        assert got.pools[pool].workers_per_replica == section.engine.tensor_parallel_size * section.engine.pipeline_parallel_size


def test_gateway_gets_its_settings() -> None:
    settings = non_default_settings()
    got = GatewayProcessSettings.read(composed(settings)[GATEWAY_APPLICATION]["args"])
    assert (got.gateway, got.access, got.links, got.tracing) == (settings.gateway, settings.access, settings.links, settings.tracing)
    assert (got.log, got.state_folder, got.link_host) == (settings.log, settings.state_folder, settings.router.host)
    assert (got.served.model, got.served.limits) == (settings.model, settings.limits)
    assert got.served.max_model_len == {pool: pool_settings(settings, pool).engine.max_model_len for pool in Pool}
    assert got.served.max_lora_rank == settings.generation.engine.max_lora_rank
    embedding, output = settings.embedding, got.served.output
    assert (output.default_pooling, output.layer, output.final_layer_norm) == (
        embedding.default_pooling,
        embedding.layer,
        embedding.final_layer_norm,
    )


def test_job_with_its_own_engine_gets_the_settings_of_a_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller writes them to a file, which the job's process reads. The process's environment must not change them."""
    settings = non_default_settings()
    router = composed(settings)[ROUTER_APPLICATION]
    jobs = JobControllerSettings.read(router["deployments"][0]["user_config"])
    file = tmp_path / f"engines{COMPLETE_FILE_SUFFIX}"
    file.write_text(json.dumps(RunSettings.from_settings(jobs).engine_settings), encoding="utf-8")
    monkeypatch.setenv("NEOX_SERVE_GENERATION__ENGINE__MAX_NUM_SEQS", "3")
    got = JobEngineSettings.load(file)
    assert got == JobEngineSettings.from_settings(settings)
    for pool in Pool:
        assert PoolEngineSettings.from_settings(got, pool) == PoolEngineSettings.from_settings(settings, pool)
    assert ServedModelSettings.from_settings(got) == ServedModelSettings.from_settings(settings)
    assert "secret" not in file.read_text(encoding="utf-8")


def test_job_settings_of_a_users_file_are_overridden_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "engines.yaml"
    file.write_text("generation: {engine: {max_num_seqs: 5, dtype: float32}}", encoding="utf-8")
    monkeypatch.setenv("NEOX_SERVE_GENERATION__ENGINE__MAX_NUM_SEQS", "3")
    engine = JobEngineSettings.load(file).generation.engine
    assert (engine.max_num_seqs, engine.dtype) == (3, "float32")


def _changed(path: str, value: Any) -> Settings:
    """The default settings with one setting of the non-default ones."""
    values: dict[str, Any] = {}
    target = values
    *parents, last = path.split(".")
    for name in parents:
        target = target.setdefault(name, {})
    target[last] = value
    return restore(values)


READ_BY_OTHERS = {
    "max_model_len": {GATEWAY_APPLICATION},
    "max_lora_rank": {GATEWAY_APPLICATION},
    "tensor_parallel_size": {ROUTER_APPLICATION},
    "pipeline_parallel_size": {ROUTER_APPLICATION},
}
"""Engine settings of the generation pool that gateways or the router read too."""


def test_changed_engine_setting_restarts_only_its_pool() -> None:
    changed = dict(leaves(non_default_settings().generation.engine.model_dump(mode="json", exclude={"extra_arguments"})))
    for name, value in changed.items():
        others = READ_BY_OTHERS.get(name, set())
        assert restarted(restore({}), _changed(f"generation.engine.{name}", value)) == {GENERATION_APPLICATION} | others, name


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        ("batch.max_running_jobs", 9, set()),
        ("scaling.headroom", 2.0, {ROUTER_APPLICATION}),
        ("router.max_queued_requests", 9, {ROUTER_APPLICATION}),
        ("gateway.max_concurrent_requests", 9, {GATEWAY_APPLICATION}),
        ("limits.n", 9, {GATEWAY_APPLICATION}),
        ("metrics.port", 9999, {ROUTER_APPLICATION}),
        ("client.api_key_file", "/key", set()),
    ],
)
def test_changed_setting_restarts_only_the_processes_that_read_it(path: str, value: Any, names: set[str]) -> None:
    assert restarted(restore({}), _changed(path, value)) == names


def test_changed_engine_setting_reaches_the_job_controller_without_a_restart() -> None:
    before, after = restore({}), _changed("generation.engine.quantization", "fp8")
    first, second = (composed(settings)[ROUTER_APPLICATION] for settings in (before, after))
    assert first["args"] == second["args"]
    assert first["deployments"] != second["deployments"]
