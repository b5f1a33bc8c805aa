"""Ray's own batch inference over the rows of a bulk job: `python -m tests.bench.jobs.ray_data_host SETTINGS ROWS`.

`ray.data.llm` runs with the same engine settings as the job. The program prints the tokens per second from the start of the first request
to the end of the last row.
"""

import json
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import ray

from neox_serve.core.types import Pool
from neox_serve.engine.environment import engine_environment
from neox_serve.engine.hardware import this_machine
from neox_serve.engine.vllm.arguments import build_engine_arguments
from neox_serve.model.model_files import locate
from neox_serve.settings import Settings, restore
from neox_serve.settings.slices import PoolEngineSettings

_LOGICAL_CPUS = 8
_BATCH, _BATCHES = 32, 8
"""Batch size and number of concurrent batches, large enough to keep the engine busy."""


def main() -> None:
    """Runs the command."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    settings = restore(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    rows = [json.loads(line) for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()]
    requests = [{"token_ids": row["prompt"], "max_tokens": row["max_tokens"]} for row in rows]  # a column "prompt" would be used as text
    environment = engine_environment(PoolEngineSettings.from_settings(settings, Pool.GENERATION))
    # More CPUs than a small machine has, because Ray Data's own stages request some and would otherwise wait forever.
    ray.init(address="local", num_cpus=_LOGICAL_CPUS, include_dashboard=False, logging_level="warning")
    config = vLLMEngineProcessorConfig(
        model_source=str(locate(settings.model.source, settings.model.revision)),
        engine_kwargs=_arguments(settings),
        batch_size=_BATCH,
        max_concurrent_batches=_BATCHES,
        concurrency=1,
        placement_group_config={"bundles": [{"CPU": 1}]},
        runtime_env={"env_vars": environment},
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    processor = build_processor(config, preprocess=_request, postprocess=_stamped)
    found = processor(ray.data.from_items(requests)).take_all()
    began_s, ended_s = min(row["ended_s"] - row["took_s"] for row in found), max(row["ended_s"] for row in found)
    print(json.dumps(sum(row["tokens"] for row in found) / (ended_s - began_s)), flush=True)
    ray.shutdown()


def _arguments(settings: Settings) -> dict[str, Any]:
    arguments = build_engine_arguments(
        PoolEngineSettings.from_settings(settings, Pool.GENERATION), locate(settings.model.source, settings.model.revision), this_machine()
    )
    defaults = asdict(type(arguments)())
    found = {each.name: getattr(arguments, each.name) for each in fields(arguments)}
    return {name: value for name, value in found.items() if name != "model" and value != defaults[name]}


def _request(row: dict[str, Any]) -> dict[str, Any]:
    params = {"temperature": 0.0, "max_tokens": row["max_tokens"], "ignore_eos": True}
    return {"tokenized_prompt": row["token_ids"], "sampling_params": params}


def _stamped(row: dict[str, Any]) -> dict[str, Any]:
    return {"ended_s": time.time(), "took_s": row["time_taken_llm"], "tokens": row["num_generated_tokens"]}


if __name__ == "__main__":
    main()
