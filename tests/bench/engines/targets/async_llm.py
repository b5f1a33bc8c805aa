"""vLLM's AsyncLLM in the load generator's process, as in an application that embeds the engine."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from neox_serve.core.types import Pool
from neox_serve.engine.hardware import this_machine
from neox_serve.loadgen.records import Arrival, Response
from neox_serve.loadgen.targets import Stamp, Target
from neox_serve.loadgen.workloads import Prompt
from neox_serve.model.model_files import locate
from neox_serve.settings import restore
from neox_serve.settings.slices import PoolEngineSettings

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


@dataclass(frozen=True, slots=True)
class AsyncLlmSpec:
    """Specification of an AsyncLlmTarget."""

    settings: dict[str, Any]
    """Dumped settings, whose generation engine is configured as in neox-serve."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """Starts the engine. Its environment variables must be set already."""
        from vllm.v1.engine.async_llm import AsyncLLM

        from neox_serve.engine.vllm.arguments import build_engine_arguments

        settings = restore(self.settings)
        folder = locate(settings.model.source, settings.model.revision)
        arguments = build_engine_arguments(PoolEngineSettings.from_settings(settings, Pool.GENERATION), folder, this_machine())
        llm = AsyncLLM.from_engine_args(replace(arguments, disable_log_stats=False))
        try:
            yield AsyncLlmTarget(llm)
        finally:
            llm.shutdown()


class AsyncLlmTarget:
    """Streams token deltas from AsyncLLM.generate."""

    def __init__(self, llm: "AsyncLLM") -> None:
        self._llm = llm
        self._ids = count()

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """Sends one request. Raises vLLM's exceptions."""
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        vllm_prompt = prompt if isinstance(prompt, str) else TokensPrompt(prompt_token_ids=list(prompt))
        async for output in self._llm.generate(vllm_prompt, params, f"bench-{next(self._ids)}"):
            stamp(output.outputs[0].token_ids)

    def decode(self, stamped: Sequence[tuple[float, Sequence[int]]]) -> Response:
        """Returns one arrival for each output."""
        return Response([Arrival(at_s, tuple(token_ids)) for at_s, token_ids in stamped])
