"""The OpenAI server is started with flags, neox-serve and AsyncLLM with arguments: both must give the same engine."""

from dataclasses import asdict
from typing import Any

import pytest

from neox_serve.core.types import Pool
from neox_serve.engine.hardware import this_machine
from neox_serve.model.model_files import locate
from neox_serve.settings import restore
from neox_serve.settings.slices import PoolEngineSettings
from tests.bench.engines.engine_comparison import VALUES
from tests.bench.engines.systems import openai_server_flags

# Limits of single requests, which the bench does not touch, and settings of structured output and of images, which it does not use; and
# vLLM's own log of its throughput: all systems keep its metrics.
_NOT_OF_SPEED = {"disable_log_stats", "max_logprobs", "mm_device_do_normalize", "structured_outputs_config", "runner"}


@pytest.mark.e2e
def test_openai_server_flags_give_the_engine_that_neox_serve_builds() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from neox_serve.engine.vllm.arguments import build_engine_arguments

    settings = restore(dict(VALUES))
    ours = build_engine_arguments(PoolEngineSettings.from_settings(settings, Pool.GENERATION), locate("builtin", None), this_machine())
    skipped = {"--host", "--uvicorn-log-level", "--disable-uvicorn-access-log"}
    flags = [text for text in _pairs(openai_server_flags(settings)) if text[0] not in skipped]
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    theirs = AsyncEngineArgs.from_cli_args(parser.parse_args([part for pair in flags for part in pair]))
    assert _compared(theirs) == _compared(ours)


def _pairs(flags: list[str]) -> list[list[str]]:
    """Yields each flag with its value, if it has one."""
    pairs: list[list[str]] = []
    for part in flags:
        if part.startswith("--"):
            pairs.append([part])
        else:
            pairs[-1].append(part)
    return pairs


def _compared(arguments: Any) -> dict[str, Any]:
    # Off is None, False or empty: the command line and the constructor differ there.
    values: dict[str, Any] = {name: value or None for name, value in asdict(arguments).items() if name not in _NOT_OF_SPEED}
    served = values["served_model_name"]
    return values | {"served_model_name": served if isinstance(served, str) else served[0]}
