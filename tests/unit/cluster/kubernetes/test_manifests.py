"""The Kubernetes manifests: valid according to the schemas of KubeRay and Serve, and sized according to the settings."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from cluster.cli import app
from cluster.kubernetes.manifests import Target, on_kubernetes, render, render_yaml
from deployments.app import build_gateway, build_router
from deployments.placement import placement_options
from neox_serve.settings import Settings, SettingsError, check_shared_by_nodes, database_url, load, restore
from neox_serve.settings.engines import ReplicaSettings
from neox_serve.settings.slices import GatewayProcessSettings, RouterProcessSettings

NEOX_20B = Path(__file__).parents[4] / "deployments" / "config" / "neox-20b.yaml"

POD_TEMPLATE = {
    "type": "object",
    "required": ["metadata", "spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "image", "resources"],
                        "properties": {
                            "image": {"type": "string", "minLength": 1},
                            "ports": {
                                "type": "array",
                                "items": {
                                    "required": ["containerPort"],
                                    "properties": {
                                        "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$"},
                                        "containerPort": {"type": "integer", "minimum": 1, "maximum": 65535},
                                    },
                                },
                            },
                            "resources": {
                                "type": "object",
                                "additionalProperties": {"type": "object", "required": ["cpu", "memory"]},
                                "propertyNames": {"enum": ["limits", "requests"]},
                            },
                        },
                    },
                },
                "volumes": {"type": "array"},
            },
        }
    },
}
GROUP = {
    "required": ["rayStartParams", "template"],
    "properties": {
        "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
        "template": POD_TEMPLATE,
    },
}
WORKER_GROUP = {
    "required": ["groupName", "replicas", "minReplicas", "maxReplicas", *GROUP["required"]],
    "properties": {
        **GROUP["properties"],  # type: ignore[dict-item]
        "groupName": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        **{key: {"type": "integer", "minimum": 0} for key in ("replicas", "minReplicas", "maxReplicas")},
    },
}
RAY_SERVICE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayService"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["serveConfigV2", "rayClusterConfig"],
            "properties": {
                "serveConfigV2": {"type": "string"},
                "serviceUnhealthySecondThreshold": {"type": "integer"},
                "deploymentUnhealthySecondThreshold": {"type": "integer"},
                "rayClusterConfig": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["headGroupSpec"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "enableInTreeAutoscaling": {"type": "boolean"},
                        "headGroupSpec": GROUP,
                        "workerGroupSpecs": {"type": "array", "items": WORKER_GROUP},
                    },
                },
            },
        },
    },
}


def groups(settings: Settings, **target: Any) -> dict[str, Any]:
    """Returns the worker groups by name."""
    service, *_ = render(settings, Target(**target))
    return {group["groupName"]: group for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}


def gpus(group: dict[str, Any]) -> int:
    """Returns the number of GPUs of one pod."""
    return int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))


def sizes(group: dict[str, Any]) -> tuple[int, int, int]:
    return group["minReplicas"], group["replicas"], group["maxReplicas"]


def with_engine(parallel: dict[str, Any], replicas: dict[str, Any]) -> Settings:
    return restore({"generation": {"engine": parallel, "replicas": replicas}, "embedding": {"enabled": False}})


@pytest.mark.parametrize("settings", [restore({}), load(NEOX_20B)], ids=["defaults", "20b"])
def test_render_manifests_match_the_schemas(settings: Settings) -> None:
    service, *others = [*yaml.safe_load_all(render_yaml(settings, Target()))]
    jsonschema.validate(service, RAY_SERVICE)
    ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert [manifest["kind"] for manifest in others] == ["Service", "PodMonitor"]


def test_render_yaml_parses_to_the_rendered_manifests() -> None:
    assert [*yaml.safe_load_all(render_yaml(restore({}), Target()))] == render(restore({}), Target())


def test_render_20b_replica_gets_a_pod_with_two_gpus() -> None:
    found = groups(load(NEOX_20B))
    assert {name: gpus(group) for name, group in found.items()} == {"gateway": 0, "generation": 2, "embedding": 2}
    assert sizes(found["generation"]) == (1, 1, 2)
    assert sizes(found["embedding"]) == (1, 1, 1)
    assert found["generation"]["template"]["spec"]["tolerations"]


@pytest.mark.parametrize(
    ("parallel", "per_worker", "gpus_per_pod", "max_pods"),
    [
        ({"tensor_parallel_size": 2}, 1, 2, 3),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 1, 4, 3),
        ({"tensor_parallel_size": 4, "executor_backend": "ray"}, 1, 1, 12),
        ({}, 0.5, 1, 3),
        ({}, 0, 0, 3),
    ],
)
def test_render_engine_group_is_sized_by_workers_and_replicas(parallel: Any, per_worker: float, gpus_per_pod: int, max_pods: int) -> None:
    settings = with_engine(parallel, {"min": 1, "initial": 1, "max": 3, "gpus_per_worker": per_worker})
    group = groups(settings)["generation"]
    assert (gpus(group), group["maxReplicas"]) == (gpus_per_pod, max_pods)
    assert "embedding" not in groups(settings)


def test_render_surge_replicas_raise_the_maximum_and_enable_the_autoscaler() -> None:
    settings = with_engine({}, {"min": 2, "initial": 2, "max": 2})
    without_surge, *_ = render(settings, Target())
    assert not without_surge["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"]
    with_surge, *_ = render(settings, Target(surge_replicas=1))
    assert with_surge["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"]
    assert sizes(groups(settings, surge_replicas=1)["generation"]) == (2, 2, 3)


def test_render_gateways_have_their_own_group_service_and_health_probe() -> None:
    settings = restore({"gateway": {"processes": 3, "port": 50099}})
    service, front, _ = render(settings, Target(gateway_pods=4))
    group = groups(settings, gateway_pods=4)["gateway"]
    pod = group["template"]
    (container,) = pod["spec"]["containers"]
    assert sizes(group) == (4, 4, 4)
    assert container["readinessProbe"]["grpc"] == {"port": 50099}
    assert front["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert front["spec"]["ports"][0]["port"] == 50099
    applications = {it["name"]: it for it in yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]}
    assert applications["neox-gateway"]["deployments"] == [{"name": "gateway", "num_replicas": 12}]


def test_render_pods_offer_the_resources_that_each_part_requests() -> None:
    settings = on_kubernetes(restore({}))
    service, *_ = render(restore({}), Target())
    cluster = service["spec"]["rayClusterConfig"]
    offered: dict[str, int] = {}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        offered |= json.loads(json.loads(group["rayStartParams"]["resources"]))
    requested = [settings.router.node_resource, settings.gateway.node_resource]
    requested += [settings.generation.replicas.node_resource, settings.embedding.replicas.node_resource]
    assert set(offered) == set(requested)
    assert offered["neox_gateway"] >= 2 * settings.gateway.processes
    router, gateway = RouterProcessSettings.from_settings(settings), GatewayProcessSettings.from_settings(settings)
    assert build_router(router.dump())._bound_deployment.ray_actor_options["resources"] == {"neox_router": 1}
    assert build_gateway(gateway.dump())._bound_deployment.ray_actor_options["resources"] == {"neox_gateway": 1}


def test_placement_options_include_the_node_resource_with_every_executor() -> None:
    replicas = ReplicaSettings(node_resource="here", gpus_per_worker=1, num_cpus=2)
    engine = restore({}).generation.engine
    assert placement_options(engine, replicas)["ray_actor_options"]["resources"] == {"here": 1}
    spread = placement_options(engine.model_copy(update={"executor_backend": "ray", "tensor_parallel_size": 2}), replicas)
    assert spread["placement_group_bundles"] == [{"CPU": 2.0, "GPU": 1.0, "here": 1.0}] * 2


def test_on_kubernetes_servers_listen_on_all_interfaces() -> None:
    settings = on_kubernetes(restore({}))
    assert {settings.gateway.host, settings.router.host, settings.metrics.host} == {"0.0.0.0"}
    assert settings.log.format == "json"


def test_render_tls_settings_mount_a_secret(tmp_path: Path) -> None:
    files = {key: str(tmp_path / key) for key in ("tls_certificate", "tls_key", "tls_client_ca")}
    settings = restore({"gateway": files})
    assert str(on_kubernetes(settings).gateway.tls_key) == "/etc/neox-serve/tls/tls.key"
    spec = groups(settings, tls_secret="mine")["gateway"]["template"]["spec"]
    assert {"name": "tls", "secret": {"secretName": "mine"}} in spec["volumes"]
    assert "tcpSocket" in spec["containers"][0]["readinessProbe"]


def test_render_access_secret_is_mounted_in_gateway_and_head_pods_only() -> None:
    access = on_kubernetes(restore({})).access
    assert (str(access.database_url_file), str(access.secret_file)) == (
        "/etc/neox-serve/access/database-url",
        "/etc/neox-serve/access/secret",
    )
    service, *_ = render(restore({}), Target(access_secret="mine"))
    cluster = service["spec"]["rayClusterConfig"]
    pods = [cluster["headGroupSpec"]["template"], groups(restore({}), access_secret="mine")["gateway"]["template"]]
    for spec in (pod["spec"] for pod in pods):
        assert {"name": "access", "secret": {"secretName": "mine"}} in spec["volumes"]
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounts["access"] == "/etc/neox-serve/access"
    assert "access" not in str(groups(restore({}))["generation"]["template"])


def test_on_kubernetes_postgresql_is_kept_and_sqlite_is_rejected() -> None:
    named = on_kubernetes(restore({"access": {"database_url": "postgresql+psycopg://me@host/neox"}})).access
    assert (named.database_url, named.database_url_file) == ("postgresql+psycopg://me@host/neox", None)
    with pytest.raises(SettingsError, match=r"access\.database_url: sqlite:///x\.db is a file on one node.*PostgreSQL"):
        on_kubernetes(restore({"access": {"database_url": "sqlite:///x.db"}}))


def test_check_shared_by_nodes_requires_a_shared_database_and_secret() -> None:
    with pytest.raises(SettingsError, match=r"access\.database_url: the default, SQLite"):
        check_shared_by_nodes(restore({}))
    with pytest.raises(SettingsError, match=r"access\.secret_file"):
        check_shared_by_nodes(restore({"access": {"database_url": "postgresql+psycopg://me@host/neox"}}))
    check_shared_by_nodes(restore({"access": {"database_url_file": "/url", "secret_file": "/secret"}}))


def test_database_url_is_read_from_its_file(tmp_path: Path) -> None:
    settings = restore({"access": {"database_url_file": str(tmp_path / "url")}})
    with pytest.raises(SettingsError, match=r"access\.database_url_file: cannot read"):
        database_url(settings)
    (tmp_path / "url").write_text("postgresql+psycopg://me:word@host/neox\n", encoding="utf-8")
    assert database_url(settings) == "postgresql+psycopg://me:word@host/neox"
    with pytest.raises(SettingsError, match="only one of database_url and database_url_file"):
        restore({"access": {"database_url": "sqlite:///x", "database_url_file": "/url"}})


def test_render_pod_monitor_scrapes_the_head_and_keeps_instance_labels() -> None:
    service, _, monitor = render(restore({}), Target())
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    ports = {port["name"]: port["containerPort"] for port in head["spec"]["containers"][0]["ports"]}
    assert ports[endpoint["port"]] == 9464
    assert endpoint["honorLabels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= head["metadata"]["labels"].items()
    assert len(render(restore({"metrics": {"enabled": False}}), Target())) == 2


def test_render_pods_run_without_root_and_outlast_their_drain() -> None:
    for name, group in groups(restore({})).items():
        spec = group["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["terminationGracePeriodSeconds"] == 150, name


def test_render_command_prints_the_manifests() -> None:
    done = CliRunner().invoke(app, ["manifests", "render", "-c", str(NEOX_20B), "--image", "registry/neox:1", "--name", "twenty"])
    assert done.exit_code == 0, done.output
    service, *_ = yaml.safe_load_all(done.stdout)
    assert service["metadata"]["name"] == "twenty"
    containers = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert containers[0]["image"] == "registry/neox:1"
