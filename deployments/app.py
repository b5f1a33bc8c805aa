"""The composition root: which Serve applications a cluster consists of, and what each is built from.

One application for each part, so that each can be rolled alone. Serve restarts all deployments of an application whose arguments change;
therefore each gets only the settings that it reads, and a change of an engine setting leaves router, gateways and the other pool running.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from deployments.engine import EngineDeployment
from deployments.gateway import GatewayDeployment
from deployments.lookup import ROUTER_APPLICATION, ROUTER_DEPLOYMENT
from deployments.placement import node_resource, placement_options, scaling_options
from deployments.router import RouterDeployment
from neox_serve.core.types import Pool
from neox_serve.settings import Settings, pool_settings, restore

GENERATION_APPLICATION = "neox-generation"
EMBEDDING_APPLICATION = "neox-embedding"
GATEWAY_APPLICATION = "neox-gateway"

# Serve notices a dead replica after at most one period; faster checks cost more than they gain.
_HEALTH = {"health_check_period_s": 1.0, "health_check_timeout_s": 30.0, "graceful_shutdown_wait_loop_s": 0.1}
# Beyond the time a replica gives its own work, for closing engine processes.
_CLOSING_S = 20.0


def serve_config(settings: Settings) -> dict[str, Any]:
    """The cluster in the schema of Ray Serve's REST API and of KubeRay's serveConfigV2."""
    return {"proxy_location": "Disabled", "applications": applications(settings)}


def applications(settings: Settings) -> list[dict[str, Any]]:
    """The cluster's applications, each with the function that builds it and the settings it reads."""
    engine = {"model", "router", "log", "links", "tracing"}
    chosen = [
        # First: it takes longest to be up, and Serve builds in this order.
        _application(GENERATION_APPLICATION, "build_generation", settings, engine | {"generation"}),
        _application(ROUTER_APPLICATION, "build_router", settings, _ROUTER_READS),
        _application(GATEWAY_APPLICATION, "build_gateway", settings, _GATEWAY_READS),
    ]
    if settings.embedding.enabled:
        chosen.insert(1, _application(EMBEDDING_APPLICATION, "build_embedding", settings, engine | {"embedding"}))
    return chosen


_SCALED = {"engine": {"tensor_parallel_size", "pipeline_parallel_size"}, "replicas": True}
_ROUTER_READS: dict[str, Any] = {
    "router": True,
    "scaling": True,
    "model": {"name", "source", "revision", "registry"},
    "generation": _SCALED,
    "embedding": {"enabled": True, **_SCALED},
    "metrics": True,
    "log": True,
    "access": True,
    "batch": True,
    "gateway": {"host", "port", "tls_certificate", "tls_key"},
    "state_folder": True,
    "links": True,
    "tracing": True,
}
_GATEWAY_READS: dict[str, Any] = {
    "model": True,
    "limits": True,
    "gateway": True,
    "access": True,
    "links": True,
    "tracing": True,
    "state_folder": True,
    "router": True,
    "log": True,
    "generation": {"engine": {"max_model_len", "max_lora_rank"}},
    "embedding": {"enabled": True, "default_pooling": True, "layer": True, "final_layer_norm": True, "engine": {"max_model_len"}},
}


def _application(name: str, builder: str, settings: Settings, reads: Any) -> dict[str, Any]:
    return {
        "name": name,
        "import_path": f"deployments.app:{builder}",
        "route_prefix": None,
        "args": settings.model_dump(mode="json", include=reads, exclude_unset=False),
    }


def build_router(arguments: dict[str, Any]) -> Application:
    """Builds the router's application; called by Serve."""
    actor = {"num_cpus": 0, **node_resource(restore(arguments).router.node_resource)}
    options = {"name": ROUTER_DEPLOYMENT, "num_replicas": 1, "ray_actor_options": actor, **_HEALTH}
    return serve.deployment(RouterDeployment).options(**options).bind(arguments)


def build_generation(arguments: dict[str, Any]) -> Application:
    """Builds the generation pool's application; called by Serve."""
    return _engine_pool(Pool.GENERATION, arguments)


def build_embedding(arguments: dict[str, Any]) -> Application:
    """Builds the embedding pool's application; called by Serve."""
    return _engine_pool(Pool.EMBEDDING, arguments)


def _engine_pool(pool: Pool, arguments: dict[str, Any]) -> Application:
    settings = restore(arguments)
    chosen = pool_settings(settings, pool)
    options = {
        "name": pool.value,
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": chosen.replicas.drain_timeout_s + _CLOSING_S,
        **placement_options(chosen.engine, chosen.replicas),
        **scaling_options(pool, chosen.replicas),
        **_HEALTH,
    }
    return serve.deployment(EngineDeployment).options(**options).bind(pool.value, arguments)


def build_gateway(arguments: dict[str, Any]) -> Application:
    """Builds the gateways' application; called by Serve."""
    gateway = restore(arguments).gateway
    options = {
        "name": "gateway",
        "num_replicas": gateway.processes,
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": gateway.drain_timeout_s + _CLOSING_S,
        "ray_actor_options": {"num_cpus": 0, **node_resource(gateway.node_resource)},
        **_HEALTH,
    }
    return serve.deployment(GatewayDeployment).options(**options).bind(arguments)
