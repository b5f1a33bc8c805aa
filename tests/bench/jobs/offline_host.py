"""vLLM's offline `LLM.generate` against a bulk job on the same rows.

Run as `python -m tests.bench.jobs.offline_host SETTINGS ROWS ROUNDS FOLDER`. Both take turns on one engine with the same cores and memory.
The program prints two lists of tokens per second. The job is the complete command with --own-engine, except that it uses the engine of
`LLM` instead of starting its own.
"""

import json
import re
import sys
import time
from contextlib import redirect_stderr
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from deployments.jobs.bulk.__main__ import main as bulk_main
from neox_serve.core.types import Pool
from neox_serve.engine.hardware import this_machine
from neox_serve.engine.vllm.arguments import build_engine_arguments
from neox_serve.model.model_files import locate
from neox_serve.settings import restore
from neox_serve.settings.slices import PoolEngineSettings
from tests.run_arguments import arguments_of, bulk_run

_FIRST = 256


def main() -> None:
    """Runs the command."""
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    settings_file, rows_file, rounds, folder = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    settings = restore(json.loads(settings_file.read_text(encoding="utf-8")))
    rows = [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]
    arguments = build_engine_arguments(
        PoolEngineSettings.from_settings(settings, Pool.GENERATION), locate(settings.model.source, settings.model.revision), this_machine()
    )
    llm = LLM(**{each.name: getattr(arguments, each.name) for each in fields(EngineArgs)} | {"disable_log_stats": True})
    _offline(llm, rows[:_FIRST])  # warm-up: the first batches include one-time initialization
    found: dict[str, list[float]] = {"offline": [], "own": []}
    for number in range(rounds):
        llm.reset_prefix_cache()
        found["offline"].append(_offline(llm, rows))
        llm.reset_prefix_cache()
        found["own"].append(_own(llm, settings_file, rows_file, folder / f"own-{number}.jsonl"))
    print(json.dumps(found), flush=True)


def _offline(llm: Any, rows: list[dict[str, Any]]) -> float:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    prompts = [TokensPrompt(prompt_token_ids=row["prompt"]) for row in rows]
    params = [SamplingParams(temperature=0.0, max_tokens=row["max_tokens"], ignore_eos=True) for row in rows]
    began_s = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.perf_counter() - began_s)


def _own(llm: Any, settings: Path, rows: Path, output: Path) -> float:
    """Returns the tokens per second that the job reports."""
    from vllm.v1.engine.llm_engine import LLMEngine

    run = bulk_run("generate", str(rows), str(output), "", output.stem, own_engine=True, config=settings)
    engine, said = llm.llm_engine, StringIO()
    with (
        patch.object(LLMEngine, "from_vllm_config", return_value=engine),
        patch.object(engine.engine_core, "shutdown"),
        redirect_stderr(said),
    ):
        exit_code = bulk_main(arguments_of(run))
    if exit_code != 0 or ", 0 with an error." not in said.getvalue():
        raise SystemExit(f"the job failed: {said.getvalue()}")
    return float(re.findall(r"([\d,]+) tok/s", said.getvalue())[-1].replace(",", ""))


if __name__ == "__main__":
    main()
