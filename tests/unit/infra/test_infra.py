"""The files in infra/ fit the code: images install the locked versions, and dashboards and alerts query metrics that exist."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from neox_serve.core.types import Pool
from neox_serve.gateway.server.metrics import GatewayMetrics
from neox_serve.router.metrics import RouterMetrics

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
ADDED_LABELS = {"component", "instance", "le"}


class NoReplicas:
    """The part of a dispatcher that the gateway's metrics use."""

    router_connected = True

    def ready_replicas(self, pool: Pool) -> int:
        return 0

    def may_wake(self, pool: Pool) -> bool:
        return False


def exposed() -> set[str]:
    """Names of all samples that gateways, the router and vLLM can expose."""
    pages = GatewayMetrics(NoReplicas()).text() + RouterMetrics().text()  # type: ignore[arg-type]
    found = dict(re.findall(r"^# TYPE (\S+) (\S+)$", pages, flags=re.MULTILINE)) | vllm_metrics()
    return {f"{name}{part}" for name, kind in found.items() for part in (HISTOGRAM_PARTS if kind == "histogram" else ("",))}


def vllm_metrics() -> dict[str, str]:
    """Names and kinds of vLLM's metrics, read from its source so that vLLM is not imported."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0], "v1", "metrics", "loggers.py").read_text()
    pairs = re.findall(r'_(counter|gauge|histogram)_cls\(\s*name="(vllm:[a-z_]+)"', source)
    return {f"{name}_total" if kind == "counter" else name: kind for kind, name in pairs}


def expressions() -> Iterator[tuple[str, str]]:
    """Name and expression of every alert and panel."""
    for group in yaml.safe_load((INFRA / "prometheus" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((INFRA / "grafana" / "neox-serve.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:neox|vllm)[a-z_]*:?[a-z_]+\b", re.sub(r'"[^"]*"', "", expression)))


@pytest.mark.parametrize(("name", "expression"), [*expressions()])
def test_expression_queries_metrics_that_exist(name: str, expression: str) -> None:
    names = metrics_in(expression)
    assert names, name
    assert names <= exposed(), name
    assert expression.count("(") == expression.count(")")


@pytest.mark.parametrize(("name", "expression"), [*expressions()])
def test_expression_uses_labels_that_exist(name: str, expression: str) -> None:
    source = "".join(path.read_text() for path in (ROOT / "neox_serve").rglob("*metrics.py"))
    known = ADDED_LABELS | set(re.findall(r'"([a-z]+)"', source))
    grouped = [label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")]
    selected = re.findall(r"[{,]\s*([a-z_]+)\s*=", expression)
    assert {*grouped, *selected} <= known, name


def test_dashboard_panels_do_not_overlap_and_have_their_own_ids() -> None:
    panels = json.loads((INFRA / "grafana" / "neox-serve.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


def test_scrape_config_scrapes_the_metrics_page_and_keeps_its_labels() -> None:
    config = yaml.safe_load((INFRA / "prometheus" / "prometheus.yaml").read_text())
    (scrape,) = config["scrape_configs"]
    assert scrape["honor_labels"]
    assert scrape["static_configs"] == [{"targets": ["127.0.0.1:9464"]}]
    for name in config["rule_files"]:
        assert (INFRA / "prometheus" / name).is_file()


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_image_is_built_in_stages_from_locked_versions_and_runs_without_root(name: str) -> None:
    text = (INFRA / "images" / f"Dockerfile.{name}").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert sum(line.startswith("FROM ") for line in lines) == 2
    assert f"requirements/{name}.lock" in text
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
    assert all(":" in image and not image.endswith(":latest") for image in re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_image_copies_only_what_the_build_context_has(name: str) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    text = (INFRA / "images" / f"Dockerfile.{name}").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert any(Path(source).match(pattern) for pattern in kept), source


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_lock_pins_every_requirement_of_the_project_once(name: str) -> None:
    import tomllib

    pins = [line for line in (ROOT / "requirements" / f"{name}.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[^\s;]+", pin) for pin in pins)
    names = [pin.partition("==")[0] for pin in pins]
    assert len(set(names)) == len(names)
    project: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][name]]
    required = {re.split(r"[\[=<>]", requirement)[0] for requirement in wanted}
    assert required <= set(names)
    exact = {requirement for requirement in wanted if re.fullmatch(r"[a-z0-9-]+==\S+", requirement)}
    assert exact <= set(pins)
