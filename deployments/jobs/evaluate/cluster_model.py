"""The cluster as a model of lm-evaluation-harness: likelihoods by `Score` and texts by `Generate`, with many calls in flight.

The gateway tokenizes contexts and continuations, in the same way as the harness's own models.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from deployments.jobs.access import Access
from deployments.jobs.failures import JobError
from deployments.jobs.progress import JobProgress
from neox_serve.client import AsyncClient, RetryPolicy, ServeError
from neox_serve.core.types import ModelLimits

_T = TypeVar("_T")
_PAIRS_PER_CALL = 16
_DEFAULT_TOKENS = 256
_SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p", "repetition_penalty"})
_BEGIN = -1
"""Placeholder for the token before the beginning of a text."""


class ClusterModel(LM):  # type: ignore[misc]
    """Sends the harness's requests to a cluster. `max_model_len` is the context length of the served model."""

    def __init__(self, access: Access, *, adapter: str, concurrency: int, max_stall_s: float, progress: JobProgress) -> None:
        """Asks the cluster for its limits. Raises JobError if it does not respond for `max_stall_s` or refuses.

        `concurrency` is the number of calls in flight; `progress` counts requests.
        """
        super().__init__()
        self._access = access
        self._api_key = access.api_key()
        self._options: dict[str, Any] = {"adapter": adapter or None, "priority": "bulk"}
        self._concurrency = concurrency
        self._retry = RetryPolicy(max_attempts=1_000_000_000, max_wait_s=max_stall_s, unreachable_delay_s=1.0)
        self._progress = progress
        limits = asyncio.run(self._limits())
        self.max_model_len = limits.max_model_len
        self._pairs_per_call = min(_PAIRS_PER_CALL, limits.prompts_per_request)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the log likelihood of each continuation given its context, and whether greedy decoding would generate it."""
        del disable_tqdm
        return self._scored([request.args for request in requests], cached=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log likelihood of each text. A text that exceeds the context length is scored in windows."""
        del disable_tqdm
        windows = [self._windows(ids) for ids in asyncio.run(self._tokenized([request.args[0] for request in requests]))]
        scores = iter(self._scored([pair for some in windows for pair in some], cached=False))
        sums = [sum(next(scores)[0] for _ in some) for some in windows]
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the continuation of each context, up to a stop text or the maximum length."""
        del disable_tqdm
        self._progress.add_expected(len(requests))
        return asyncio.run(self._each([self._generation(request) for request in requests]))

    def _scored(self, pairs: Sequence[tuple[Any, Any]], *, cached: bool) -> list[tuple[float, bool]]:
        """Returns log likelihoods and whether they are greedy. With `cached`, stores them for the next run."""

        def some(start: int) -> Callable[[AsyncClient], Coroutine[Any, Any, list[tuple[float, bool]]]]:
            async def ask(client: AsyncClient) -> list[tuple[float, bool]]:
                result = await client.score(pairs[start : start + self._pairs_per_call], truncation="keep_end", **self._options)
                found = [(score.log_likelihood, score.is_greedy) for score in result.scores]
                for pair, answer in zip(pairs[start:], found, strict=False) if cached else ():
                    self.cache_hook.add_partial("loglikelihood", pair, answer)
                self._progress.update(self._progress.done + len(found), tokens=self._progress.tokens + result.usage.prompt_tokens)
                return found

            return ask

        self._progress.add_expected(len(pairs))
        parts = asyncio.run(self._each([some(start) for start in range(0, len(pairs), self._pairs_per_call)]))
        return [one for part in parts for one in part]

    def _generation(self, request: Instance) -> Callable[[AsyncClient], Coroutine[Any, Any, str]]:
        context, given = request.args
        values = normalize_gen_kwargs(given, _DEFAULT_TOKENS)
        until = [text for text in handle_stop_sequences(values.pop("until", None), eos=None) if text]
        options = self._options | {name: values[name] for name in _SAMPLING & values.keys()}
        if not values.get("do_sample"):
            options["temperature"] = 0.0
        max_tokens = min(int(values["max_gen_toks"]), self.max_model_len - 1)

        async def ask(client: AsyncClient) -> str:
            result = await client.generate([context], max_tokens=max_tokens, stop=until, truncation="keep_end", **options)
            text: str = result.results[0].completions[0].text
            self.cache_hook.add_partial("generate_until", request.args, text)
            self._progress.complete_row(tokens=result.usage.completion_tokens, error=False)
            return text

        return ask

    def _windows(self, ids: Sequence[int]) -> list[tuple[list[int], list[int]]]:
        found = get_rolling_token_windows(list(ids), prefix_token=_BEGIN, max_seq_len=self.max_model_len - 1, context_len=1)
        return [([one for one in context if one != _BEGIN], list(rest)) for context, rest in map(make_disjoint_window, found)]

    async def _each(self, requested: Sequence[Callable[[AsyncClient], Coroutine[Any, Any, _T]]]) -> list[_T]:
        """Makes calls with limited concurrency and returns their results in order. Raises JobError if one is refused."""
        slots = asyncio.Semaphore(self._concurrency)

        async def one(client: AsyncClient, ask: Callable[[AsyncClient], Coroutine[Any, Any, _T]]) -> _T:
            async with slots:
                return await ask(client)

        try:
            async with self._client() as client, asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(client, ask)) for ask in requested]
        except ExceptionGroup as errors:
            raise _failure(errors.exceptions[0]) from errors
        return [task.result() for task in tasks]

    async def _tokenized(self, texts: Sequence[str]) -> list[Sequence[int]]:
        async def ask(client: AsyncClient, text: str) -> Sequence[int]:
            return (await client.tokenize([text]))[0].token_ids

        return await self._each([lambda client, text=text: ask(client, text) for text in texts])  # type: ignore[misc]

    async def _limits(self) -> ModelLimits:
        try:
            async with self._client() as client:
                return (await client.models())[0].limits
        except ServeError as error:
            raise _failure(error) from error

    def _client(self) -> AsyncClient:
        return AsyncClient(self._access.address, tls=self._access.client_tls, retry=self._retry, api_key=self._api_key)


def _failure(error: BaseException) -> BaseException:
    return JobError(str(error), 1) if isinstance(error, ServeError) else error
