"""The metrics page of the whole cluster."""

import asyncio
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from neox_serve.core.cluster import ScalingView
from neox_serve.core.types import Pool
from tests.fakes.link_cluster import MODEL, LinkCluster, generation, until
from tests.fakes.scripted_engine import ScriptedEngine

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(address: str) -> str:
    def get() -> str:
        with urlopen(f"http://{address}/metrics", timeout=5) as response:
            return str(response.read(), "utf-8")

    return await asyncio.to_thread(get)


def samples_of(text: str) -> Samples:
    """Returns all samples of a page. Raises ValueError if it does not parse or repeats a family."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


async def test_page_shows_scaling_decisions_and_reasons_in_few_series() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        for wanted, reason in ((1, "demand in 90 s needs 1"), (4, "demand in 30.5 s needs 4"), (3, "3 would have done for 75 s")):
            router.show_scaling((ScalingView(Pool.GENERATION, wanted, reason),))
        text = await scrape(router.metrics_address)
        found = {name: dict(labels) for name, labels in samples_of(text) if name.startswith("neox_serve_scaling_reason")}
        assert [labels["reason"] for labels in found.values()] == ["_ would have done for _ s"]
        values = {(name, dict(labels).get("direction")): value for (name, labels), value in samples_of(text).items()}
        assert values["neox_serve_wanted_replicas", None] == 3
        assert values["neox_serve_scaling_changes_total", "up"] == 1
        assert values["neox_serve_scaling_changes_total", "down"] == 1


async def test_page_has_the_metrics_of_every_process_with_its_labels() -> None:
    engine = ScriptedEngine()
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replicas = [await cluster.replica(engine), await cluster.replica(ScriptedEngine())]
        dispatcher = await cluster.dispatcher(replicas=2)
        streams = [await dispatcher.open_generation(MODEL, generation()) for _ in range(3)]

        async def page() -> Samples:
            return samples_of(await scrape(router.metrics_address))

        def labels(component: str, instance: str, **more: str) -> frozenset[tuple[str, str]]:
            return frozenset({"component": component, "instance": instance, **more}.items())

        found: Samples = {}
        for _ in range(100):
            found = await page()
            if ("calls_total", labels("gateway", "g")) in found and len([key for key in found if key[0] == "scripted_steps_total"]) == 2:
                break
            await asyncio.sleep(0.1)
        assert found["calls_total", labels("gateway", "g")] == 7
        for replica in replicas:
            assert ("scripted_steps_total", labels("engine", replica.replica_id, pool="generation")) in found
        own = {name: value for (name, _), value in found.items() if name.startswith("neox_serve_router_")}
        assert own["neox_serve_router_admissions_total"] == 3
        assert own["neox_serve_router_decision_seconds_count"] == 3
        assert own["neox_serve_router_gateways"] == 1
        leases = {dict(key)["pool"]: value for (name, key), value in found.items() if name == "neox_serve_router_leases"}
        assert leases == {"generation": 3, "embedding": 0}
        for stream in streams:
            stream.cancel()


async def test_page_drops_a_lost_process() -> None:
    async with LinkCluster() as cluster:
        router = await cluster.router()
        replica = await cluster.replica(ScriptedEngine())
        await cluster.dispatcher()
        await until(router.state.replicas)
        for _ in range(100):
            if replica.replica_id in await scrape(router.metrics_address):
                break
            await asyncio.sleep(0.05)
        await replica.stop()
        await until(lambda: not router.state.replicas())
        assert replica.replica_id not in await scrape(router.metrics_address)
