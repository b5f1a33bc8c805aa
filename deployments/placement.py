"""Translates settings into Serve deployment options: the resources of a replica and the number of replicas."""

from typing import Any

from neox_serve.core.types import Pool
from neox_serve.engine.pools import executor_backend
from neox_serve.settings.engines import EngineSettings, ReplicaSettings


def node_resource(name: str | None) -> dict[str, Any]:
    """Returns the part of `ray_actor_options` that restricts an actor to nodes with a custom resource, of which it reserves 1."""
    return {"resources": {name: 1}} if name else {}


def placement_options(engine: EngineSettings, replicas: ReplicaSettings) -> dict[str, Any]:
    """Returns the Serve options that place one replica.

    With the `ray` executor each worker gets its own bundle. The bundles are packed onto as few nodes as possible, and the replica's process
    runs in the first. Otherwise all workers are children of the replica's process, whose actor reserves all their GPUs on one node.
    """
    name = replicas.node_resource
    actor: dict[str, Any] = {"num_cpus": replicas.num_cpus}
    if executor_backend(engine, replicas) == "ray":
        bundle = {"CPU": max(replicas.num_cpus, 1.0), "GPU": replicas.gpus_per_worker} | ({name: 1.0} if name else {})
        return {
            "ray_actor_options": actor,
            "placement_group_bundles": [bundle] * engine.workers,
            "placement_group_strategy": "PACK",
        }
    actor |= node_resource(name)
    if replicas.gpus_per_worker:
        actor["num_gpus"] = replicas.gpus_per_worker * engine.workers
    return {"ray_actor_options": actor}


def scaling_options(pool: Pool, replicas: ReplicaSettings) -> dict[str, Any]:
    """Returns the Serve options for the number of replicas.

    It is fixed if minimum and maximum are equal. Otherwise Serve applies the decisions of the scaling loop (see scaling.py) at once; any
    delays are part of the scaling policy.
    """
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.initial}
    policy = {"policy_function": "autoscaling.ray_adapter:WantedReplicas", "policy_kwargs": {"pool": pool.value}}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.min,
            "initial_replicas": replicas.initial,
            "max_replicas": replicas.max,
            "metrics_interval_s": 0.2,
            "look_back_period_s": 1.0,
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 0.0,
            "policy": policy,
        }
    }
