"""The configuration of systems that are measured with their defaults."""

from neox_serve.settings import Settings, restore
from tests.bench.engines.systems import DEFAULTS_ENVIRONMENT, default_cluster_values, serve_llm_defaults

PORTS = {"gateway": {"port"}, "metrics": {"port"}, "ray": {"dashboard_port"}}


def test_default_cluster_values_differ_from_the_defaults_only_in_ports() -> None:
    settings, defaults = restore(default_cluster_values()).model_dump(), restore({}).model_dump()
    changed = {
        section: {name for name, value in settings[section].items() if value != defaults[section][name]}
        for section in Settings.model_fields
        if settings[section] != defaults[section]
    }
    assert changed == PORTS


def test_serve_llm_defaults_configure_only_the_kv_cache() -> None:
    arguments = serve_llm_defaults(restore({}))
    assert "engine_kwargs" not in arguments
    assert arguments["runtime_env"] == {"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    assert DEFAULTS_ENVIRONMENT.keys() == {"VLLM_CPU_KVCACHE_SPACE"}
