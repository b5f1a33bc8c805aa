"""One simulated engine: continuous batching with chunked prefill and a KV cache of limited size.

Theory of operation: a step decodes one token for every running sequence and uses the rest of its token budget to compute prompts in order
of arrival. The simulation does not visit each step. While no prompt waits, the batch does not change until its shortest sequence ends or
the KV cache is full, and the duration of these steps is given by a closed formula. Such a run of steps is cut short at the end of a step if
a request arrives. The cost of simulating a request therefore does not depend on the number of tokens it generates.

If the KV cache has no space for the next tokens, the newest sequences are preempted: their blocks are freed, and everything they had is
recomputed when they are scheduled again, as in vLLM.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from autoscaling.simulator.prefix_cache import Allocation, CacheChanges, PrefixCache
from neox_serve.model.step_time import StepTime

_NO_BLOCKS: tuple[int, ...] = ()


class Urgency(IntEnum):
    """The priority classes of simulated traffic."""

    DEFAULT = 0
    BULK = 1


class Request:
    """A request in the simulation. Times are in simulated seconds; first_token_s and ended_s are negative until they are known."""

    __slots__ = (
        "allocation",
        "at_s",
        "blocks",
        "cached_tokens",
        "end_step",
        "ended_s",
        "first_token_s",
        "held_tokens",
        "join_step",
        "lease_id",
        "output_tokens",
        "preemptions",
        "prompt_left",
        "prompt_tokens",
        "tenant",
        "urgency",
        "written_tokens",
    )

    def __init__(
        self,
        at_s: float,
        prompt_tokens: int,
        output_tokens: int,
        tenant: int = 0,
        urgency: Urgency = Urgency.DEFAULT,
        blocks: tuple[int, ...] = _NO_BLOCKS,
    ) -> None:
        self.at_s = at_s
        """Time of arrival."""
        self.prompt_tokens = prompt_tokens
        """Length of the prompt."""
        self.output_tokens = output_tokens
        """Length of the answer."""
        self.tenant = tenant
        """The tenant, by number."""
        self.urgency = urgency
        """The priority class."""
        self.blocks = blocks
        """Names of the prompt's blocks that can be in a prefix cache, in order."""
        self.first_token_s = self.ended_s = -1.0
        """Times of the first token and of the end."""
        self.prompt_left = prompt_tokens
        """Prompt tokens that are not computed yet."""
        self.written_tokens = 0
        """Tokens generated before the request last started to decode."""
        self.held_tokens = 0
        """Tokens in the KV cache when it started to decode; before the dispatch, its expected total length."""
        self.cached_tokens = 0
        """Prompt tokens that the prefix cache held."""
        self.join_step = self.end_step = 0
        """Numbers of the engine steps after which it began and will end decoding."""
        self.lease_id = 0
        """Its current lease in the router."""
        self.preemptions = 0
        """How many times it was preempted."""
        self.allocation: Allocation | None = None
        """Its blocks, if the engine has a prefix cache."""

    def restart(self) -> None:
        """Discards everything that was computed. Tokens that the client already has become part of the prompt."""
        self.prompt_left = self.prompt_tokens + self.written_tokens
        self.held_tokens = self.cached_tokens = 0
        self.allocation = None


@dataclass(frozen=True, slots=True)
class EngineShape:
    """The properties of the engines of a pool. Raises ValueError if one is out of range."""

    step_time: StepTime
    """Durations of steps."""
    kv_tokens: int
    """Size of the KV cache in tokens."""
    step_tokens: int = 2048
    """Maximum number of tokens in one step."""
    max_sequences: int = 256
    """Maximum number of sequences in one step."""
    prefix_blocks: int = 0
    """Size of the prefix cache in blocks, which then limits the KV cache; 0 for no prefix cache."""
    block_tokens: int = 64
    """Number of tokens in one block."""

    def __post_init__(self) -> None:
        if min(self.kv_tokens, self.step_tokens, self.max_sequences) < 1:
            raise ValueError(f"{self} is invalid; kv_tokens, step_tokens and max_sequences must be at least 1")


class SimulatedEngine:
    """Accepts requests with `submit` and runs steps: `begin` returns when the run of steps that begins now will end, and `finish` ends it.

    The caller must call `finish` at that time. If a request arrives earlier, the caller must call `cut`, which may return an earlier time.
    The engine appends requests that have their first token to `first_tokens`, from which the caller may take them.
    """

    __slots__ = (
        "_began_s",
        "_cache",
        "_decoding",
        "_ends",
        "_joined",
        "_joins",
        "_order",
        "_parts",
        "_prefilling",
        "_shape",
        "_step",
        "_steps",
        "_waiting",
        "busy_s",
        "first_tokens",
        "held_tokens",
        "prefill_tokens",
    )

    def __init__(self, shape: EngineShape, first_tokens: list[Request] | None = None) -> None:
        self._shape = shape
        self._step = shape.step_time
        self._waiting: deque[Request] = deque()
        self._prefilling: list[Request] = []
        self._ends: list[tuple[int, int, Request]] = []
        """Heap of the running sequences by their last step, then by the order in which they joined."""
        self._joined: list[Request] = []
        self._joins = 0
        self._order = 0
        self._decoding = 0
        self._steps = 0
        self._parts: list[tuple[Request, int]] = []
        self._began_s = 0.0
        self._cache = PrefixCache(shape.prefix_blocks) if shape.prefix_blocks else None
        self.first_tokens = [] if first_tokens is None else first_tokens
        self.held_tokens = 0
        self.prefill_tokens = 0
        self.busy_s = 0.0

    # State

    @property
    def idle(self) -> bool:
        """Whether the engine has no requests."""
        return not (self._waiting or self._prefilling or self._decoding)

    @property
    def requests(self) -> int:
        """Number of requests in the engine."""
        return len(self._waiting) + len(self._prefilling) + self._decoding

    @property
    def kv_usage_fraction(self) -> float:
        """Fraction of the KV cache that is in use."""
        return min(1.0, self.held_tokens / self._shape.kv_tokens)

    @property
    def uncomputed_tokens(self) -> int:
        """Prompt tokens that were submitted and are not computed yet."""
        return self.prefill_tokens

    def all_requests(self) -> list[Request]:
        """Returns all requests in the engine, in no particular order."""
        return [*self._waiting, *self._prefilling, *(request for _, _, request in self._ends)]

    def take_changes(self) -> CacheChanges:
        """Returns the changes of the prefix cache since the previous call."""
        return self._cache.take_changes() if self._cache else CacheChanges()

    # Steps

    def submit(self, request: Request) -> None:
        """Adds a request to the queue."""
        self.prefill_tokens += request.prompt_left
        self._waiting.append(request)

    def begin(self, now_s: float) -> float:
        """Begins a run of steps. Return the time at which it ends, or infinity if there is nothing to do."""
        self._began_s = now_s
        self._admit()
        if not self._prefilling:
            return now_s + self._begin_decoding() if self._decoding else math.inf
        self._preempt(1)
        budget = self._shape.step_tokens - self._decoding
        parts: list[tuple[Request, int]] = []
        tokens = 0
        for request in self._prefilling:
            part = min(request.prompt_left, budget - tokens)
            if part <= 0:
                break
            parts.append((request, part))
            tokens += part
        self._parts = parts
        return now_s + self._step.decode_s(self._decoding, self.held_tokens) + self._step.prefill_s(tokens)

    def cut(self, now_s: float) -> float:
        """Shortens the current run of steps because a request has arrived at `now_s`.

        Return when the current step ends, or infinity if the run cannot be shortened, because it is a single step with prompts.
        """
        if self._parts or not self._steps:
            return math.inf
        done = self._steps_within(now_s - self._began_s)
        self._steps = min(self._steps, math.floor(done) + 1)
        return self._began_s + self._decode_s(self._steps)

    def finish(self, now_s: float) -> list[Request]:
        """Ends the current run of steps and returns the requests that have completed."""
        self.busy_s += now_s - self._began_s
        if self._parts:
            ended = self._finish_mixed(now_s)
        else:
            self._order += self._steps
            self.held_tokens += self._decoding * self._steps
            ended = []
        self._steps = 0
        return self._complete_ended(ended, now_s)

    def stop(self) -> list[Request]:
        """Stops the engine and returns its requests, which must be recomputed elsewhere."""
        lost = self.all_requests()
        for request in lost:
            if request.end_step:
                request.written_tokens = self._written(request)
            request.end_step = 0
            request.restart()
        self._waiting.clear()
        self._prefilling.clear()
        self._ends.clear()
        self._joined.clear()
        self._decoding = self.held_tokens = self.prefill_tokens = 0
        return lost

    # Internals

    def _admit(self) -> None:
        """Starts requests in order while there is space for their prompts and one more token."""
        while self._waiting and self._decoding + len(self._prefilling) < self._shape.max_sequences:
            request = self._waiting[0]
            needed = request.prompt_left + 1
            if self.held_tokens + needed > self._shape.kv_tokens and (self._decoding or self._prefilling):
                return
            if self._cache is not None and not self._look_up(request, self._cache):
                return
            self._waiting.popleft()
            request.held_tokens = request.prompt_left + 1
            self.held_tokens += request.held_tokens
            self._prefilling.append(request)

    def _look_up(self, request: Request, cache: PrefixCache) -> bool:
        """Allocates blocks and skip the cached part of the prompt. Return False if there is not enough space yet."""
        cached = request.blocks[: cache.cached_blocks(request.blocks)]
        tokens = request.prompt_tokens + request.output_tokens
        allocation = cache.allocate(cached, max(0, -(-tokens // self._shape.block_tokens) - len(cached)))
        if allocation is None:
            return False
        request.allocation = allocation
        request.cached_tokens = min(len(cached) * self._shape.block_tokens, request.prompt_left - 1)
        request.prompt_left -= request.cached_tokens
        self.prefill_tokens -= request.cached_tokens
        return True

    def _begin_decoding(self) -> float:
        """Begins steps in which the batch does not change, and returns how long they take."""
        self._preempt(1)
        steps = self._ends[0][0] - self._order
        steps_with_space = (self._shape.kv_tokens - self.held_tokens) // self._decoding
        self._steps = max(1, min(steps, steps_with_space) if self._decoding > 1 else steps)
        return self._decode_s(self._steps)

    def _decode_s(self, steps: int) -> float:
        """Returns the duration of `steps` steps, in each of which every sequence adds a token to the KV cache."""
        first = self._step.decode_s(self._decoding, self.held_tokens)
        return steps * first + self._step.per_resident_token_s * self._decoding * steps * (steps - 1) / 2

    def _steps_within(self, seconds: float) -> float:
        """Returns the number of steps in a time, with a fraction: the inverse of `_decode_s`."""
        first = self._step.decode_s(self._decoding, self.held_tokens)
        growth = self._step.per_resident_token_s * self._decoding / 2
        if growth <= 1e-15:
            return seconds / first
        linear = first - growth
        return (math.sqrt(linear * linear + 4 * growth * seconds) - linear) / (2 * growth)

    def _preempt(self, steps: int) -> None:
        """Preempt the newest sequences until each of the others has space for its next tokens."""
        while self._decoding > 1 and self.held_tokens + self._decoding * steps > self._shape.kv_tokens:
            victim = self._joined.pop()
            if victim.end_step <= self._order or victim.ended_s >= 0:
                continue
            self._release(victim)
            self._ends = [entry for entry in self._ends if entry[2] is not victim]
            heapq.heapify(self._ends)
            victim.written_tokens = self._written(victim)
            victim.end_step = 0
            victim.preemptions += 1
            victim.restart()
            self.prefill_tokens += victim.prompt_left
            self._waiting.appendleft(victim)

    def _written(self, request: Request) -> int:
        return request.output_tokens - (request.end_step - self._order)

    def _release(self, request: Request) -> None:
        """Releases the memory of a running sequence."""
        self._decoding -= 1
        self.held_tokens -= request.held_tokens + self._order - request.join_step
        if self._cache is not None and request.allocation is not None:
            self._cache.release(request.allocation)
            request.allocation = None

    def _finish_mixed(self, now_s: float) -> list[Request]:
        self._order += 1
        self.held_tokens += self._decoding
        ended: list[Request] = []
        for request, part in self._parts:
            request.prompt_left -= part
            self.prefill_tokens -= part
            if not request.prompt_left:
                self._begin_decode(request, now_s, ended)
        self._parts = []
        if ended or any(not request.prompt_left for request in self._prefilling):
            self._prefilling = [request for request in self._prefilling if request.prompt_left]
        return ended

    def _begin_decode(self, request: Request, now_s: float, ended: list[Request]) -> None:
        """Starts decoding: the prompt is computed, and the step has produced the next token."""
        if request.first_token_s < 0:
            request.first_token_s = now_s
            self.first_tokens.append(request)
        if self._cache is not None and request.allocation is not None:
            self._cache.share(request.allocation, request.blocks[request.cached_tokens // self._shape.block_tokens :])
        request.written_tokens += 1
        left = request.output_tokens - request.written_tokens
        request.join_step = self._order
        self._decoding += 1
        if left <= 0:
            request.end_step = self._order
            ended.append(request)
            return
        request.end_step = self._order + left
        self._joins += 1
        heapq.heappush(self._ends, (request.end_step, self._joins, request))
        self._joined.append(request)

    def _complete_ended(self, ended: list[Request], now_s: float) -> list[Request]:
        while self._ends and self._ends[0][0] <= self._order:
            ended.append(heapq.heappop(self._ends)[2])
        for request in ended:
            request.ended_s = now_s
            request.written_tokens = request.output_tokens
            self._release(request)
        if len(self._joined) > 4 * self._decoding + 64:
            self._joined = [request for request in self._joined if request.ended_s < 0 and request.end_step > self._order]
        return ended
