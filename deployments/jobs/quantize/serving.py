"""Compares engines of two checkpoints, one after the other: how fast each generates, and how much of their output is the same.

`python -m deployments.jobs.quantize.serving` runs one of them in a process of its own, since vLLM reads its settings when it is imported.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from deployments.jobs.bulk.own_engine import OwnEngine, own_engine
from deployments.jobs.failures import JobError
from deployments.jobs.quantize.texts import Texts
from neox_serve.core.types import Pool
from neox_serve.settings.slices import JobEngineSettings

_PROMPTS, _PROMPT_TOKENS = 16, 64
_MAX_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of the comparison. Both engines generate greedily after the same prompts."""

    tokens_per_s_before: float
    """Tokens per second of all requests together, with the original checkpoint."""
    tokens_per_s_after: float
    """The same with the quantized checkpoint."""
    generated_agreement_fraction: float
    """Fraction of positions with the same token. One early difference usually changes all tokens after it."""


@dataclass(frozen=True, slots=True)
class _Output:
    """What one engine generated."""

    tokens_per_s: float
    token_ids: list[list[int]]


def compare(before: Path, after: Path, texts: Texts, tokens: int, settings: JobEngineSettings, console: Console) -> Comparison:
    """Lets an engine of each checkpoint continue parts of the held-out text by `tokens` tokens. Raises JobError if one does not start."""
    prompts = _prompts(texts)
    first, second = (_measure(folder, prompts, tokens, settings, console) for folder in (before, after))
    pairs = zip(itertools.chain(*first.token_ids), itertools.chain(*second.token_ids), strict=True)
    same = sum(one == other for one, other in pairs)
    return Comparison(first.tokens_per_s, second.tokens_per_s, same / (len(prompts) * tokens))


def _prompts(texts: Texts) -> list[list[int]]:
    """Returns parts of the held-out text, evenly spaced; at least one."""
    ids = texts.held_out.tolist()
    starts = range(0, max(1, len(ids) - _PROMPT_TOKENS), max(1, (len(ids) - _PROMPT_TOKENS) // _PROMPTS))
    return [ids[start : start + _PROMPT_TOKENS] for start in starts][:_PROMPTS]


def _measure(folder: Path, prompts: list[list[int]], tokens: int, settings: JobEngineSettings, console: Console) -> _Output:
    console.print(f"Starting an engine of {folder} ...", markup=False, highlight=False)
    own = settings.model.model_copy(update={"source": str(folder), "revision": None, "adapters": (), "registry": None})
    values = settings.model_copy(update={"model": own}).dump()
    values["generation"]["engine"]["quantization"] = None
    with tempfile.TemporaryDirectory() as temporary:
        request, response = Path(temporary, "request.json"), Path(temporary, "response.json")
        request.write_text(json.dumps({"settings": values, "prompts": prompts, "tokens": tokens}), encoding="utf-8")
        command = [sys.executable, "-m", "deployments.jobs.quantize.serving", str(request), str(response)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_MAX_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise JobError(f"the engine of {folder} did not finish within {_MAX_S:g} s", 1) from error
        if done.returncode != 0:
            raise JobError(f"the engine of {folder} failed: {(done.stderr.strip().splitlines() or [str(done.returncode)])[-1]}", 1)
        return _Output(**json.loads(response.read_text(encoding="utf-8")))


async def _serve(settings: JobEngineSettings, prompts: list[list[int]], tokens: int) -> _Output:
    """Sends all prompts at once: first unmeasured to warm up the engine, then measured."""
    async with own_engine(Pool.GENERATION, settings) as engine:
        await _generate(engine, prompts, min(tokens, 8))
        began_s = time.perf_counter()
        token_ids = await _generate(engine, prompts, tokens)
        return _Output(sum(map(len, token_ids)) / (time.perf_counter() - began_s), token_ids)


async def _generate(engine: OwnEngine, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    requested = (engine.generate(prompt, max_tokens=tokens, ignore_eos=True, temperature=0.0) for prompt in prompts)
    results = await asyncio.gather(*(asyncio.ensure_future(one) for one in requested))
    return [list(result.results[0].completions[0].token_ids) for result in results]


def main() -> None:
    """Runs one engine: reads the request file, and writes the response file."""
    requested = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    output = asyncio.run(_serve(JobEngineSettings.read(requested["settings"]), requested["prompts"], requested["tokens"]))
    Path(sys.argv[2]).write_text(json.dumps(asdict(output)), encoding="utf-8")


if __name__ == "__main__":
    main()
