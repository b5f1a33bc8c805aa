"""Whether the engines can run as the settings say, as far as that shows without loading any: for those who are about to start them."""

from neox_serve.core.types import Pool
from neox_serve.engine import arguments
from neox_serve.engine.hardware import this_machine
from neox_serve.engine.pools import enabled_pools, engine_settings
from neox_serve.model import model_files
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import Settings, SettingsError


def check_engines(settings: Settings) -> ModelFacts:
    """Holds every pool's engine against the model, whose facts it returns, and this machine. Raises SettingsError.

    Fetches the model's small files only.
    """
    facts = model_files.read_facts(model_files.locate_tokenizer(settings.model.source, settings.model.revision))
    for pool in enabled_pools(settings):
        arguments.check(pool, settings, facts)
        if problems := list(arguments.adapter_problems(pool, settings, facts)):
            raise SettingsError("\n".join(problems))
    return facts


def check_with_vllm(pool: Pool, settings: Settings) -> None:
    """Has vLLM's own classes check a pool's arguments, which takes the seconds of its import. Raises SettingsError.

    The process' environment must hold what `engine_environment` gave.
    """
    if engine_settings(pool, settings).kind == "fake":
        return
    from neox_serve.engine.vllm.arguments import build_engine_arguments, build_engine_config

    folder = model_files.locate_tokenizer(settings.model.source, settings.model.revision)
    build_engine_config(pool, settings, build_engine_arguments(pool, settings, folder, this_machine()))
