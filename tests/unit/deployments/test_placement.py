"""Serve options for a replica's resources and the number of replicas."""

from deployments.placement import placement_options, scaling_options
from neox_serve.core.types import Pool
from neox_serve.settings.engines import EngineSettings, ReplicaSettings


def test_placement_on_cpu_reserves_no_gpu() -> None:
    options = placement_options(EngineSettings(), ReplicaSettings())
    assert options == {"ray_actor_options": {"num_cpus": 0.0}}


def test_placement_with_local_workers_reserves_all_gpus_on_one_node() -> None:
    engine = EngineSettings(tensor_parallel_size=2, pipeline_parallel_size=2)
    options = placement_options(engine, ReplicaSettings(gpus_per_worker=1))
    assert engine.workers == 4
    assert options["ray_actor_options"]["num_gpus"] == 4


def test_placement_with_ray_executor_packs_one_bundle_per_worker() -> None:
    engine = EngineSettings(tensor_parallel_size=2, executor_backend="ray")
    options = placement_options(engine, ReplicaSettings(gpus_per_worker=1, num_cpus=2))
    assert options["placement_group_bundles"] == [{"CPU": 2, "GPU": 1}] * 2
    assert options["placement_group_strategy"] == "PACK"
    assert "num_gpus" not in options["ray_actor_options"]


def test_placement_of_more_workers_than_a_node_has_gpus_uses_several_nodes() -> None:
    options = placement_options(EngineSettings(tensor_parallel_size=8, pipeline_parallel_size=2), ReplicaSettings(gpus_per_worker=1))
    assert len(options["placement_group_bundles"]) == 16


def test_scaling_with_equal_bounds_fixes_the_number_of_replicas() -> None:
    assert scaling_options(Pool.GENERATION, ReplicaSettings(initial=2, min=2, max=2)) == {"num_replicas": 2}


def test_scaling_with_different_bounds_applies_decisions_without_delay() -> None:
    config = scaling_options(Pool.GENERATION, ReplicaSettings(min=1, max=3))["autoscaling_config"]
    assert config["policy"]["policy_kwargs"] == {"pool": "generation"}
    assert (config["upscale_delay_s"], config["downscale_delay_s"]) == (0, 0)
    assert (config["min_replicas"], config["max_replicas"]) == (1, 3)
