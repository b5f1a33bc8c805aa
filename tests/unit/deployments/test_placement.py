"""What a replica takes from the cluster."""

from deployments.placement import placement_options, scaling_options
from neox_serve.core.types import Pool
from neox_serve.settings.engines import EngineSettings, ReplicaSettings


def test_placement_on_cpu_takes_no_gpu() -> None:
    options = placement_options(EngineSettings(), ReplicaSettings())
    assert options == {"ray_actor_options": {"num_cpus": 0.0}}


def test_placement_workers_in_the_replica_hold_all_gpus_on_one_node() -> None:
    engine = EngineSettings(tensor_parallel_size=2, pipeline_parallel_size=2)
    options = placement_options(engine, ReplicaSettings(gpus_per_worker=1))
    assert engine.workers == 4
    assert options["ray_actor_options"]["num_gpus"] == 4


def test_placement_ray_executor_packs_one_bundle_a_worker() -> None:
    engine = EngineSettings(tensor_parallel_size=2, executor_backend="ray")
    options = placement_options(engine, ReplicaSettings(gpus_per_worker=1, num_cpus=2))
    assert options["placement_group_bundles"] == [{"CPU": 2, "GPU": 1}] * 2
    assert options["placement_group_strategy"] == "PACK"
    assert "num_gpus" not in options["ray_actor_options"]


def test_placement_more_workers_than_a_node_has_gpus_are_spread_without_being_told() -> None:
    options = placement_options(EngineSettings(tensor_parallel_size=8, pipeline_parallel_size=2), ReplicaSettings(gpus_per_worker=1))
    assert len(options["placement_group_bundles"]) == 16


def test_scaling_equal_bounds_fix_the_count() -> None:
    assert scaling_options(Pool.GENERATION, ReplicaSettings(initial=2, min=2, max=2)) == {"num_replicas": 2}


def test_scaling_open_bounds_do_what_was_decided_without_further_delay() -> None:
    config = scaling_options(Pool.GENERATION, ReplicaSettings(min=1, max=3))["autoscaling_config"]
    assert config["policy"]["policy_kwargs"] == {"pool": "generation"}
    assert (config["upscale_delay_s"], config["downscale_delay_s"]) == (0, 0)
    assert (config["min_replicas"], config["max_replicas"]) == (1, 3)
