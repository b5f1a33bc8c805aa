"""InferenceService.Estimate: what a generation would use and how long it would wait, without running it."""

import asyncio

from neox_serve.core.cluster import Demand
from neox_serve.core.scheduling.fair_counters import cost
from neox_serve.core.tenancy.quota import QuotaState
from neox_serve.core.tenancy.tenants import Quotas
from neox_serve.core.types import Pool
from neox_serve.gateway.dispatch.protocol import Dispatcher
from neox_serve.gateway.requests.preparing import Preparer
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.server.calls import Call
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.v1 import inference_service_pb2 as pb
from neox_serve.wire.public_messages import duration

_ROUTER_TIMEOUT_S = 2.0
"""How long to wait for the router's estimate."""


class Estimation:
    """Implements the RPC."""

    def __init__(self, *, served: Served, tokenizer: Tokenizer, dispatcher: Dispatcher) -> None:
        self._model = served.model
        self._preparer = Preparer(served, tokenizer)
        self._dispatcher = dispatcher

    async def estimate(self, call: Call, message: pb.EstimateRequest) -> pb.EstimateResponse:
        """Returns the estimate. Raises ServeError as the generation would, and NO_READY_REPLICA if the router does not respond."""
        limits = await self._preparer.check_unary(call, message)
        prepared = await self._preparer.unary(call, message, limits)
        prompt_tokens = sum(len(prompt.request.prompt_token_ids) for prompt in prepared)
        output_tokens = sum(prompt.request.max_output_tokens for prompt in prepared)
        terms = call.terms(asyncio.get_running_loop().time())
        demand = Demand(Pool.GENERATION, self._model, prompt_tokens, output_tokens, terms=terms)
        wait_s, state = await self._dispatcher.estimate(demand, _ROUTER_TIMEOUT_S)
        left = quota_left(call.tenant.quotas, state)
        return pb.EstimateResponse(
            request_id=call.request_id,
            model=self._model,
            prompt_tokens=prompt_tokens,
            max_completion_tokens=output_tokens,
            cost=cost(prompt_tokens, 0, output_tokens),
            expected_wait=None if wait_s is None else duration(wait_s),
            quota_left=left,
            fits_quota=_fits(left, prompt_tokens + output_tokens),
        )


def quota_left(quotas: Quotas, state: QuotaState) -> pb.QuotaLeft:
    """Returns what the tenant may still reserve; fields of absent quotas are not set."""
    counted = {
        "requests_this_minute": (quotas.requests_per_minute, state.minute_requests),
        "tokens_this_minute": (quotas.tokens_per_minute, state.minute_tokens + state.reserved_tokens),
        "tokens_today": (quotas.tokens_per_day, state.day_tokens + state.reserved_tokens),
        "concurrent_requests": (quotas.concurrent_requests, state.reserved_requests),
    }
    return pb.QuotaLeft(**{name: max(0, limit - taken) for name, (limit, taken) in counted.items() if limit is not None})


def _fits(left: pb.QuotaLeft, tokens: int) -> bool:
    needs = {"requests_this_minute": 1, "tokens_this_minute": tokens, "tokens_today": tokens, "concurrent_requests": 1}
    return all(needs[field.name] <= amount for field, amount in left.ListFields())
