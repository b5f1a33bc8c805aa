"""`python -m tests.bench.offline_host SETTINGS ROWS`: vLLM's offline `LLM.generate` over the rows of a bulk job; prints tokens a second."""

import json
import sys
import time
from dataclasses import fields
from pathlib import Path

from neox_serve.core.types import Pool
from neox_serve.engine.hardware import this_machine
from neox_serve.engine.vllm_arguments import build_engine_arguments
from neox_serve.model_files import locate
from neox_serve.settings import restore

_WARM_UP = 16


def main() -> None:
    """The command."""
    from vllm import LLM, SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.inputs import TokensPrompt

    settings = restore(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    rows = [json.loads(line) for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()]
    arguments = build_engine_arguments(Pool.GENERATION, settings, locate(settings.model.source, settings.model.revision), this_machine())
    llm = LLM(**{each.name: getattr(arguments, each.name) for each in fields(EngineArgs)} | {"disable_log_stats": True})
    prompts = [TokensPrompt(prompt_token_ids=row["prompt"]) for row in rows]
    params = [SamplingParams(temperature=0.0, max_tokens=row["max_tokens"], ignore_eos=True) for row in rows]
    llm.generate([TokensPrompt(prompt_token_ids=[number, 5]) for number in range(_WARM_UP)], params[0], use_tqdm=False)
    began_s = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began_s
    print(json.dumps(sum(len(output.outputs[0].token_ids) for output in outputs) / seconds), flush=True)


if __name__ == "__main__":
    main()
