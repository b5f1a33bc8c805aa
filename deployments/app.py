"""The composition root: the Serve applications of a cluster, and the settings that each is built from.

Every part is an application of its own, so that it can be updated separately. Serve restarts all deployments of an application whose `args`
change; therefore each application gets only its slice of the settings, and a change of an engine setting leaves router, gateways and the
other pool running. The router's process also controls batch jobs, which need the engines' settings. They are passed as `user_config`, which
Serve hands to a running deployment by calling `reconfigure`.
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
from neox_serve.settings import Settings
from neox_serve.settings.slices import (
    GatewayProcessSettings,
    JobControllerSettings,
    ReplicaProcessSettings,
    RouterProcessSettings,
    Slice,
)

GENERATION_APPLICATION = "neox-generation"
EMBEDDING_APPLICATION = "neox-embedding"
GATEWAY_APPLICATION = "neox-gateway"

_HEALTH = {"health_check_period_s": 1.0, "health_check_timeout_s": 30.0, "graceful_shutdown_wait_loop_s": 0.1}
"""Serve notices a dead replica after at most one health check period. Shorter periods cost more than they gain."""
_CLOSING_S = 20.0
"""Time to close engine processes, in addition to the time that a replica has to finish its requests."""


def serve_config(settings: Settings) -> dict[str, Any]:
    """Returns the cluster in the schema of Ray Serve's REST API and of KubeRay's serveConfigV2."""
    return {"proxy_location": "Disabled", "applications": applications(settings)}


def applications(settings: Settings) -> list[dict[str, Any]]:
    """Returns the cluster's applications, each with the function that builds it and its slice of the settings.

    Serve builds them in this order. The generation pool comes first because it takes longest to start.
    """
    chosen = [_application(GENERATION_APPLICATION, "build_generation", ReplicaProcessSettings.from_settings(settings, Pool.GENERATION))]
    if settings.embedding.enabled:
        embedding = ReplicaProcessSettings.from_settings(settings, Pool.EMBEDDING)
        chosen.append(_application(EMBEDDING_APPLICATION, "build_embedding", embedding))
    router = _application(ROUTER_APPLICATION, "build_router", RouterProcessSettings.from_settings(settings))
    router["deployments"] = [{"name": ROUTER_DEPLOYMENT, "user_config": JobControllerSettings.from_settings(settings).dump()}]
    gateway = _application(GATEWAY_APPLICATION, "build_gateway", GatewayProcessSettings.from_settings(settings))
    return [*chosen, router, gateway]


def _application(name: str, builder: str, settings: Slice) -> dict[str, Any]:
    return {"name": name, "import_path": f"deployments.app:{builder}", "route_prefix": None, "args": settings.dump()}


def build_router(arguments: dict[str, Any]) -> Application:
    """Builds the router's application; called by Serve."""
    settings = RouterProcessSettings.read(arguments)
    actor = {"num_cpus": 0, **node_resource(settings.router.node_resource)}
    options = {"name": ROUTER_DEPLOYMENT, "num_replicas": 1, "ray_actor_options": actor, **_HEALTH}
    return serve.deployment(RouterDeployment).options(**options).bind(arguments)


def build_generation(arguments: dict[str, Any]) -> Application:
    """Builds the generation pool's application; called by Serve."""
    return _engine_pool(arguments)


def build_embedding(arguments: dict[str, Any]) -> Application:
    """Builds the embedding pool's application; called by Serve."""
    return _engine_pool(arguments)


def _engine_pool(arguments: dict[str, Any]) -> Application:
    settings = ReplicaProcessSettings.read(arguments).engine
    options = {
        "name": settings.pool.value,
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": settings.replicas.drain_timeout_s + _CLOSING_S,
        **placement_options(settings.engine, settings.replicas),
        **scaling_options(settings.pool, settings.replicas),
        **_HEALTH,
    }
    return serve.deployment(EngineDeployment).options(**options).bind(arguments)


def build_gateway(arguments: dict[str, Any]) -> Application:
    """Builds the gateways' application; called by Serve."""
    gateway = GatewayProcessSettings.read(arguments).gateway
    options = {
        "name": "gateway",
        "num_replicas": gateway.processes,
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": gateway.drain_timeout_s + _CLOSING_S,
        "ray_actor_options": {"num_cpus": 0, **node_resource(gateway.node_resource)},
        **_HEALTH,
    }
    return serve.deployment(GatewayDeployment).options(**options).bind(arguments)
