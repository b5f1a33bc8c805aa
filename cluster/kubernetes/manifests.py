"""Kubernetes manifests, rendered from the same settings that run locally: a KubeRay RayService, the gateways' Service, and a PodMonitor.

There are three kinds of pods. The head pod runs Ray's control plane and the router, which serves the metrics page. Gateway pods run only
gateways, and the Service routes calls to those whose gRPC health check reports SERVING. Each engine pod runs one replica with all its GPUs,
or one worker with the `ray` executor. Custom Ray resources keep each part on its pods (`node_resource` in the settings).
"""

import importlib.metadata
import json
from dataclasses import dataclass
from typing import Any

import yaml

from deployments.app import GATEWAY_APPLICATION, serve_config
from neox_serve.core.types import Pool
from neox_serve.engine.pools import enabled_pools, executor_backend
from neox_serve.settings import Settings, check_shared_by_nodes, pool_settings, restore
from neox_serve.settings.engines import EmbeddingSettings, GenerationSettings

_ROUTER_RESOURCE, _GATEWAY_RESOURCE = "neox_router", "neox_gateway"
_RAYLET_HEALTH_PORT = 52365
_CACHE_FOLDER = "/home/neox/.cache"
_TLS_FOLDER = "/etc/neox-serve/tls"
_ACCESS_FOLDER = "/etc/neox-serve/access"
_TLS_FILES = {"tls_certificate": "tls.crt", "tls_key": "tls.key", "tls_client_ca": "ca.crt"}
_ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - inside a pod, the Service controls access


@dataclass(frozen=True, slots=True)
class Target:
    """Properties of the Kubernetes deployment that are not settings of neox-serve. Quantities use Kubernetes' notation."""

    name: str = "neox-serve"
    """Name of the RayService, and prefix of the other resources' names."""
    namespace: str = "default"
    """Kubernetes namespace."""
    image: str = "neox-serve:latest"
    """Container image of all pods."""
    gateway_pods: int = 2
    """Number of gateway pods. Each runs `gateway.processes` gateways."""
    engine_cpu: str = "4"
    """CPUs of each engine pod."""
    engine_memory: str = "32Gi"
    """Memory of each engine pod."""
    shared_memory: str = "8Gi"
    """Size of /dev/shm in each pod."""
    surge_replicas: int = 0
    """Engine replicas beyond a pool's maximum that a rolling update may start before old ones stop.

    With 0, a pool at its maximum cannot be updated in place."""
    model_cache_claim: str | None = None
    """PersistentVolumeClaim for downloaded checkpoints. None means that each pod downloads its own copy."""
    tls_secret: str = "neox-serve-tls"  # noqa: S105 - a name
    """Secret of type kubernetes.io/tls, with ca.crt if clients must present a certificate. It is mounted if the settings enable TLS."""
    access_secret: str = "neox-serve-access"  # noqa: S105 - a name
    """Secret with `secret` (at least 32 bytes, the key of usage chains and cache salts), and `database-url` (an SQLAlchemy URL of a
    PostgreSQL database) unless the settings contain one."""
    gpu_node_selector: tuple[tuple[str, str], ...] = ()
    """Labels of the nodes for pods with GPUs, as pairs of name and value."""


def render_yaml(settings: Settings, target: Target) -> str:
    """Returns all manifests as one YAML stream. Raises SettingsError as `on_kubernetes` does."""
    return yaml.dump_all(render(settings, target), Dumper=_Dumper, sort_keys=False, width=140)


def render(settings: Settings, target: Target) -> list[dict[str, Any]]:
    """Returns all manifests in the order in which they must be applied. Raises SettingsError as `on_kubernetes` does."""
    manifests = [_ray_service(settings, target), _gateway_service(settings, target)]
    return [*manifests, _pod_monitor(target)] if settings.metrics.enabled else manifests


def on_kubernetes(settings: Settings) -> Settings:
    """Returns the settings for the pods: reachable from other pods, each part on its own kind of node, and one database for all.

    Raises SettingsError if the settings contain an SQLite database, which is a file in a single pod.
    """
    values = settings.model_dump()
    values["access"] |= {"secret_file": f"{_ACCESS_FOLDER}/secret"}
    if settings.access.database_url is None:
        values["access"] |= {"database_url_file": f"{_ACCESS_FOLDER}/database-url"}
    values["gateway"] |= {"host": _ALL_INTERFACES, "node_resource": _GATEWAY_RESOURCE}
    values["router"] |= {"host": _ALL_INTERFACES, "node_resource": _ROUTER_RESOURCE}
    values["metrics"] |= {"host": _ALL_INTERFACES}
    values["log"] |= {"format": "json"}
    for key, file in _TLS_FILES.items():
        if values["gateway"][key] is not None:
            values["gateway"][key] = f"{_TLS_FOLDER}/{file}"
    for pool in Pool:
        values[pool.value]["replicas"] |= {"node_resource": _resource_of(pool)}
    in_pods = restore(values)
    check_shared_by_nodes(in_pods)
    return in_pods


def _ray_service(settings: Settings, target: Target) -> dict[str, Any]:
    groups = [_gateway_group(settings, target), *(_engine_group(settings, pool, target) for pool in enabled_pools(settings))]
    cluster = {
        "rayVersion": importlib.metadata.version("ray"),
        "enableInTreeAutoscaling": any(group["minReplicas"] != group["maxReplicas"] for group in groups),
        "headGroupSpec": _head_group(settings, target),
        "workerGroupSpecs": groups,
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": _metadata(target, target.name),
        "spec": {
            "serviceUnhealthySecondThreshold": 900,
            "deploymentUnhealthySecondThreshold": 300,
            "serveConfigV2": yaml.safe_dump(_serve_config(settings, target), sort_keys=False, width=140),
            "rayClusterConfig": cluster,
        },
    }


def _serve_config(settings: Settings, target: Target) -> dict[str, Any]:
    """Returns Serve's configuration as it is used locally, but with `gateway.processes` gateways for each gateway pod."""
    config = serve_config(on_kubernetes(settings))
    for application in config["applications"]:
        if application["name"] == GATEWAY_APPLICATION:
            application["deployments"] = [{"name": "gateway", "num_replicas": settings.gateway.processes * target.gateway_pods}]
    return config


def _head_group(settings: Settings, target: Target) -> dict[str, Any]:
    ports = [
        {"name": "gcs", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
        {"name": "client", "containerPort": 10001},
    ]
    if settings.metrics.enabled:
        ports.append({"name": "neox-metrics", "containerPort": settings.metrics.port})
    container = _container("ray-head", target, cpu="2", memory="8Gi") | {"ports": ports}
    return {
        "rayStartParams": {"dashboard-host": _ALL_INTERFACES, "num-cpus": "0", "resources": _ray_resources({_ROUTER_RESOURCE: 2})},
        "template": _with_secret(_pod(target, "head", container), "access", target.access_secret, _ACCESS_FOLDER),
    }


def _gateway_group(settings: Settings, target: Target) -> dict[str, Any]:
    """Returns the group of gateway pods.

    The Ray resource is twice what the gateways need, because a rolling update stops an old gateway only after the new one is ready.
    """
    processes = settings.gateway.processes
    container = _container("ray-worker", target, cpu=str(processes), memory=f"{processes + 1}Gi") | {
        "ports": [{"name": "grpc", "containerPort": settings.gateway.port}],
        "readinessProbe": {**_gateway_probe(settings), "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2},
    }
    pod = _pod(target, "gateway", container, grace_s=settings.gateway.drain_timeout_s)
    _with_secret(pod, "access", target.access_secret, _ACCESS_FOLDER)
    if settings.gateway.tls_certificate:
        _with_secret(pod, "tls", target.tls_secret, _TLS_FOLDER)
    return _worker_group("gateway", replicas=(target.gateway_pods,) * 3, resources={_GATEWAY_RESOURCE: 2 * processes}, template=pod)


def _gateway_probe(settings: Settings) -> dict[str, Any]:
    """Returns a gRPC health probe. Kubernetes has no gRPC probe over TLS, so with TLS the probe only checks that the port is open."""
    port = settings.gateway.port
    return {"tcpSocket": {"port": port}} if settings.gateway.tls_certificate else {"grpc": {"port": port}}


def _engine_group(settings: Settings, pool: Pool, target: Target) -> dict[str, Any]:
    chosen = pool_settings(settings, pool)
    pods, gpus = _pods_per_replica(chosen), _gpus_per_pod(chosen)
    container = _container("ray-worker", target, cpu=target.engine_cpu, memory=target.engine_memory, gpus=gpus) | {
        "readinessProbe": {"httpGet": {"path": "/api/local_raylet_healthz", "port": _RAYLET_HEALTH_PORT}, "periodSeconds": 5}
    }
    replicas = chosen.replicas
    return _worker_group(
        pool.value,
        replicas=(replicas.initial * pods, replicas.min * pods, (replicas.max + target.surge_replicas) * pods),
        resources={_resource_of(pool): 1},
        template=_pod(target, f"{pool.value}-engine", container, grace_s=replicas.drain_timeout_s, gpus=gpus),
    )


def _pods_per_replica(chosen: GenerationSettings | EmbeddingSettings) -> int:
    """Returns the number of pods: one per worker with the `ray` executor; otherwise all workers are children of one process."""
    return chosen.engine.workers if executor_backend(chosen.engine, chosen.replicas) == "ray" else 1


def _gpus_per_pod(chosen: GenerationSettings | EmbeddingSettings) -> int:
    """Returns a whole number, because Kubernetes does not divide GPUs."""
    total = chosen.replicas.gpus_per_worker * chosen.engine.workers
    return -(-int(-(-total // 1)) // _pods_per_replica(chosen))


def _worker_group(name: str, *, replicas: tuple[int, int, int], resources: dict[str, int], template: dict[str, Any]) -> dict[str, Any]:
    """Returns a worker group. `replicas` are the initial, minimum and maximum numbers of pods."""
    initial, minimum, maximum = replicas
    return {
        "groupName": name,
        "replicas": initial,
        "minReplicas": minimum,
        "maxReplicas": maximum,
        "rayStartParams": {"resources": _ray_resources(resources)},
        "template": template,
    }


def _pod(target: Target, component: str, container: dict[str, Any], *, grace_s: float = 30.0, gpus: int = 0) -> dict[str, Any]:
    cache = {"persistentVolumeClaim": {"claimName": target.model_cache_claim}} if target.model_cache_claim else {"emptyDir": {}}
    shared = {"emptyDir": {"medium": "Memory", "sizeLimit": target.shared_memory}}
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": int(grace_s) + 30,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "cache", **cache}, {"name": "shared-memory", **shared}],
    }
    if gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        spec |= {"nodeSelector": dict(target.gpu_node_selector)} if target.gpu_node_selector else {}
    return {"metadata": {"labels": _labels(target, component)}, "spec": spec}


def _container(name: str, target: Target, *, cpu: str, memory: str, gpus: int = 0) -> dict[str, Any]:
    resources: dict[str, Any] = {"cpu": cpu, "memory": memory} | ({"nvidia.com/gpu": gpus} if gpus else {})
    return {
        "name": name,
        "image": target.image,
        "env": [{"name": "HF_HOME", "value": f"{_CACHE_FOLDER}/huggingface"}],
        "resources": {"limits": resources, "requests": resources},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "cache", "mountPath": _CACHE_FOLDER}, {"name": "shared-memory", "mountPath": "/dev/shm"}],  # noqa: S108
    }


def _with_secret(pod: dict[str, Any], volume: str, secret: str, folder: str) -> dict[str, Any]:
    """Adds a Secret to the pod, mounted as files in all its containers, and returns the pod."""
    pod["spec"]["volumes"].append({"name": volume, "secret": {"secretName": secret}})
    for container in pod["spec"]["containers"]:
        container["volumeMounts"].append({"name": volume, "mountPath": folder, "readOnly": True})
    return pod


def _gateway_service(settings: Settings, target: Target) -> dict[str, Any]:
    """Returns a headless Service, so that gRPC clients see every gateway pod and balance their calls (round_robin)."""
    port = {"name": "grpc", "port": settings.gateway.port, "targetPort": "grpc", "appProtocol": "grpc"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(target, f"{target.name}-gateway"),
        "spec": {"clusterIP": "None", "selector": _labels(target, "gateway"), "ports": [port]},
    }


def _pod_monitor(target: Target) -> dict[str, Any]:
    """Returns the monitor of the router's metrics page.

    The page covers all processes and labels them by `instance`, which Prometheus must not overwrite (`honorLabels`).
    """
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": _metadata(target, target.name),
        "spec": {
            "selector": {"matchLabels": _labels(target, "head")},
            "podMetricsEndpoints": [{"port": "neox-metrics", "path": "/metrics", "interval": "5s", "honorLabels": True}],
        },
    }


def _metadata(target: Target, name: str) -> dict[str, Any]:
    return {"name": name, "namespace": target.namespace, "labels": {"app.kubernetes.io/name": "neox-serve"}}


def _labels(target: Target, component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "neox-serve",
        "app.kubernetes.io/instance": target.name,
        "app.kubernetes.io/component": component,
    }


def _resource_of(pool: Pool) -> str:
    return f"neox_{pool.value}"


class _Dumper(yaml.SafeDumper):
    """Writes multi-line strings as block literals, and repeats values instead of using anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _ray_resources(resources: dict[str, int]) -> str:
    """Returns the resources as JSON in quotes, because KubeRay passes the value through a shell."""
    return json.dumps(json.dumps(resources))
