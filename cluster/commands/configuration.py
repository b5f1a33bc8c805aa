"""`neox-serve config` and `manifests`: show and check settings, and render Kubernetes manifests from them."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.settings import SetOption, effective
from neox_serve.cli.connection import ConfigOption
from neox_serve.cli.console import JsonOption, print_json

if TYPE_CHECKING:
    from neox_serve.settings import Settings

config_app = typer.Typer(help="Show and check settings.", no_args_is_help=True)
manifests_app = typer.Typer(help="Render Kubernetes manifests from the settings.", no_args_is_help=True)


@config_app.command()
def show(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Print every setting with its value, in the form of a settings file."""
    settings = effective(config, overrides)
    if as_json:
        print_json(settings.model_dump(mode="json"))
        return
    import yaml

    print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), end="")


@config_app.command()
def check(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Check the settings against the model and the hardware, without loading the model."""
    settings = effective(config, overrides)
    facts = _check_engines(settings)
    print(f"{settings.model.name}: {facts}\nThe settings are valid.")


@manifests_app.command()
def render(  # noqa: PLR0913, PLR0917 - the command's options, one by one
    config: ConfigOption = None,
    overrides: SetOption = None,
    image: Annotated[str, typer.Option(help="Container image, built from infra/images.")] = "neox-serve:latest",
    name: Annotated[str, typer.Option(help="Name of the RayService; other objects have it as their prefix.")] = "neox-serve",
    namespace: Annotated[str, typer.Option(help="Kubernetes namespace.")] = "default",
    gateway_pods: Annotated[int, typer.Option(min=1, help="Number of gateway pods; each runs gateway.processes gateways.")] = 2,
    surge_replicas: Annotated[
        int,
        typer.Option(min=0, help="Number of engine replicas beyond a pool's maximum during a rolling update."),
    ] = 0,
    access_secret: Annotated[
        str, typer.Option(help="Secret with the key `secret` and, unless access.database_url is set, the key `database-url`.")
    ] = "neox-serve-access",  # noqa: S107 - a name
    model_cache_claim: Annotated[str | None, typer.Option(help="PersistentVolumeClaim for downloaded checkpoints. Default: none.")] = None,
) -> None:
    """Print a KubeRay RayService with its Services and a PodMonitor."""
    settings = effective(config, overrides)
    from cluster.kubernetes.manifests import Target, render_yaml

    target = Target(
        name=name,
        namespace=namespace,
        image=image,
        gateway_pods=gateway_pods,
        surge_replicas=surge_replicas,
        access_secret=access_secret,
        model_cache_claim=model_cache_claim,
    )
    print(render_yaml(settings, target), end="")


def _check_engines(settings: "Settings") -> str:
    """Checks the engine of every pool, with vLLM's own checks last. Returns a description of the model. Raises SettingsError."""
    from neox_serve.engine.checks import check_engines, check_with_vllm
    from neox_serve.engine.environment import engine_environment
    from neox_serve.engine.pools import enabled_pools
    from neox_serve.settings.slices import PoolEngineSettings

    facts = check_engines(settings)
    for pool in enabled_pools(settings):
        engine = PoolEngineSettings.from_settings(settings, pool)
        # vLLM logs to stdout, even about valid settings.
        os.environ.update(engine_environment(engine) | {"VLLM_LOGGING_LEVEL": "ERROR"})
        check_with_vllm(engine)
    return f"{facts.layers} layers of {facts.hidden_size}, {facts.heads} heads, {facts.positions} positions"
