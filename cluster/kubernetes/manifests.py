"""Kubernetes manifests from the settings that run locally: a KubeRay RayService, the gateways' Service, and a PodMonitor.

Three kinds of pods. The head holds Ray's control plane and the router, which serves the metrics page. Gateway pods hold gateways alone; the
Service sends calls to those whose gRPC health says that they serve. Engine pods hold one replica each (one worker each with the `ray`
executor), with all its GPUs. Custom Ray resources keep each part on its pods (`node_resource` in the settings).
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
_ANY = "0.0.0.0"  # noqa: S104 - inside a pod, whose Service decides who reaches it


@dataclass(frozen=True, slots=True)
class Target:
    """Where the manifests go, and what is not a setting of neox-serve. Quantities as Kubernetes writes them.

    gateway_pods: each holds `gateway.processes` gateways.
    surge_replicas: engine replicas of a pool beyond its maximum that a roll may start before old ones go; with 0, a pool at its maximum
    cannot be rolled in place.
    model_cache_claim: a PersistentVolumeClaim for downloaded checkpoints; None: each pod downloads for itself.
    tls_secret: a kubernetes.io/tls Secret, with ca.crt where clients must show a certificate; mounted where the settings speak TLS.
    access_secret: a Secret with `secret` (32 bytes or more: the key of usage chains and cache salts) and, where the settings name no
    database, `database-url` (PostgreSQL's, as SQLAlchemy takes it).
    gpu_node_selector: labels of the nodes for pods with GPUs.
    """

    name: str = "neox-serve"
    namespace: str = "default"
    image: str = "neox-serve:latest"
    gateway_pods: int = 2
    engine_cpu: str = "4"
    engine_memory: str = "32Gi"
    shared_memory: str = "8Gi"
    surge_replicas: int = 0
    model_cache_claim: str | None = None
    tls_secret: str = "neox-serve-tls"  # noqa: S105 - a name
    access_secret: str = "neox-serve-access"  # noqa: S105 - a name
    gpu_node_selector: tuple[tuple[str, str], ...] = ()


def render_yaml(settings: Settings, target: Target) -> str:
    """All manifests as one YAML stream."""
    return yaml.dump_all(render(settings, target), Dumper=_Dumper, sort_keys=False, width=140)


def render(settings: Settings, target: Target) -> list[dict[str, Any]]:
    """All manifests, in the order in which they are applied."""
    manifests = [_ray_service(settings, target), _gateway_service(settings, target)]
    return [*manifests, _pod_monitor(target)] if settings.metrics.enabled else manifests


def on_kubernetes(settings: Settings) -> Settings:
    """The settings as the pods run them: reachable from other pods, every part on its own kind of node, one database for all.

    Raises SettingsError where that would be SQLite, which is a file of one pod.
    """
    values = settings.model_dump()
    values["access"] |= {"secret_file": f"{_ACCESS_FOLDER}/secret"}
    if settings.access.database_url is None:
        values["access"] |= {"database_url_file": f"{_ACCESS_FOLDER}/database-url"}
    values["gateway"] |= {"host": _ANY, "node_resource": _GATEWAY_RESOURCE}
    values["router"] |= {"host": _ANY, "node_resource": _ROUTER_RESOURCE}
    values["metrics"] |= {"host": _ANY}
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
    """As locally, with `gateway.processes` gateways for each gateway pod."""
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
        "rayStartParams": {"dashboard-host": _ANY, "num-cpus": "0", "resources": _ray_resources({_ROUTER_RESOURCE: 2})},
        "template": _with_secret(_pod(target, "head", container), "access", target.access_secret, _ACCESS_FOLDER),
    }


def _gateway_group(settings: Settings, target: Target) -> dict[str, Any]:
    """Twice the room that the gateways need, since a rolled gateway goes only when the new one is ready."""
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
    """gRPC health; Kubernetes cannot ask for it through TLS, so there the open port must do."""
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
    """With the `ray` executor a replica's workers may stand in several pods, otherwise all are children of one process."""
    return chosen.engine.workers if executor_backend(chosen.engine, chosen.replicas) == "ray" else 1


def _gpus_per_pod(chosen: GenerationSettings | EmbeddingSettings) -> int:
    """Whole GPUs: Kubernetes gives no parts of one."""
    total = chosen.replicas.gpus_per_worker * chosen.engine.workers
    return -(-int(-(-total // 1)) // _pods_per_replica(chosen))


def _worker_group(name: str, *, replicas: tuple[int, int, int], resources: dict[str, int], template: dict[str, Any]) -> dict[str, Any]:
    """replicas: at the start, least, most."""
    start, least, most = replicas
    return {
        "groupName": name,
        "replicas": start,
        "minReplicas": least,
        "maxReplicas": most,
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
    """The pod, with a Secret's keys as files in a folder of its containers."""
    pod["spec"]["volumes"].append({"name": volume, "secret": {"secretName": secret}})
    for container in pod["spec"]["containers"]:
        container["volumeMounts"].append({"name": volume, "mountPath": folder, "readOnly": True})
    return pod


def _gateway_service(settings: Settings, target: Target) -> dict[str, Any]:
    """Headless: gRPC clients see every gateway pod and share their calls out (round_robin)."""
    port = {"name": "grpc", "port": settings.gateway.port, "targetPort": "grpc", "appProtocol": "grpc"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(target, f"{target.name}-gateway"),
        "spec": {"clusterIP": "None", "selector": _labels(target, "gateway"), "ports": [port]},
    }


def _pod_monitor(target: Target) -> dict[str, Any]:
    """The router's page tells of all processes; it names them by `instance`, which Prometheus must not overwrite."""
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
    """Writes texts of several lines as they read, and every value where it stands instead of references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _ray_resources(resources: dict[str, int]) -> str:
    """KubeRay hands the value to a shell, so the JSON comes in quotes of its own."""
    return json.dumps(json.dumps(resources))
