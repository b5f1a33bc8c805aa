"""One simulated engine: continuous batching with chunked prefill over a KV cache of limited size.

Theory of operation: a step decodes one token for every running sequence and, with what is left of its token budget, computes prompts in the
order in which they came. Steps are not walked through one by one. While no prompt waits, the batch stays as it is until its shortest
sequence ends or the KV cache is full, and its steps take what a sum gives; such a run of steps is cut short at the end of a step when a
request comes. So the cost of simulating a request does not depend on how many tokens it generates.

A sequence that finds no room in the KV cache for its next token is preempted, the newest first: its blocks are freed and all that it had is
computed anew when it is its turn again, as vLLM does.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from autoscaling.simulator.prefix_cache import CacheNews, PrefixCache, Room
from neox_serve.model.step_time import StepTime

_NO_BLOCKS: tuple[int, ...] = ()


class Urgency(IntEnum):
    """Priority classes in simulated traffic."""

    DEFAULT = 0
    BULK = 1


class Request:
    """A request on its way. Moments are seconds of simulated time; first_token_s and ended_s are negative before they come.

    blocks: names of its prompt's blocks that a prefix cache can spare, in order. given_s: when an engine took it.
    """

    __slots__ = (
        "at_s",
        "blocks",
        "cached_tokens",
        "end_step",
        "ended_s",
        "first_token_s",
        "given_s",
        "held_tokens",
        "join_step",
        "lease_id",
        "output_tokens",
        "preemptions",
        "prompt_left",
        "prompt_tokens",
        "room",
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
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.tenant = tenant
        self.urgency = urgency
        self.blocks = blocks
        self.first_token_s = self.ended_s = self.given_s = -1.0
        self.prompt_left = prompt_tokens
        self.written_tokens = 0
        self.held_tokens = 0
        self.cached_tokens = 0
        self.join_step = self.end_step = 0
        self.lease_id = 0
        self.preemptions = 0
        self.room: Room | None = None

    def restart(self) -> None:
        """All that was computed of it is lost; tokens that its client has are part of the prompt now."""
        self.prompt_left = self.prompt_tokens + self.written_tokens
        self.held_tokens = self.cached_tokens = 0
        self.room = None


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What every engine of a pool is. kv_tokens: that its cache holds. step_tokens: most in a step. max_sequences: most in a batch.

    prefix_blocks, block_tokens: of its prefix cache, which then rules the KV cache's room; 0 for none.
    """

    step_time: StepTime
    kv_tokens: int
    step_tokens: int = 2048
    max_sequences: int = 256
    prefix_blocks: int = 0
    block_tokens: int = 64

    def __post_init__(self) -> None:
        if min(self.kv_tokens, self.step_tokens, self.max_sequences) < 1:
            raise ValueError(f"engine {self}: kv_tokens, step_tokens and max_sequences must be at least 1")


class SimulatedEngine:
    """Takes requests with `submit`, then does steps: `begin` says when the run of steps that begins now will end, `finish` ends it.

    Whoever drives it calls `finish` at that moment, or `cut` when a request comes in between, which may say an earlier one. first_tokens:
    where it puts the requests that have their first token, for whoever measures that.
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
        self._ends: list[tuple[int, int, Request]] = []  # of running sequences, by the step that is their last, then as they joined
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

    # To look at

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return not (self._waiting or self._prefilling or self._decoding)

    @property
    def requests(self) -> int:
        """That it has."""
        return len(self._waiting) + len(self._prefilling) + self._decoding

    @property
    def kv_usage_fraction(self) -> float:
        """Of its KV cache."""
        return min(1.0, self.held_tokens / self._shape.kv_tokens)

    @property
    def uncomputed_tokens(self) -> int:
        """Prompt tokens that it has been given and not computed."""
        return self.prefill_tokens

    def all_requests(self) -> list[Request]:
        """Those that it has, in no order."""
        return [*self._waiting, *self._prefilling, *(request for _, _, request in self._ends)]

    def take_news(self) -> CacheNews:
        """What has changed in its prefix cache since the last call."""
        return self._cache.take_news() if self._cache else CacheNews()

    # Work

    def submit(self, request: Request) -> None:
        """Takes a request."""
        self.prefill_tokens += request.prompt_left
        self._waiting.append(request)

    def begin(self, now_s: float) -> float:
        """Begins a run of steps. Returns the moment at which it ends; infinite where there is nothing to do."""
        self._began_s = now_s
        self._admit()
        if not self._prefilling:
            return now_s + self._begin_decoding() if self._decoding else math.inf
        self._make_room(1)
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
        """A request has come while steps are being done. Returns when the step that is being done now ends, or what `begin` said before."""
        if self._parts or not self._steps:
            return math.inf
        done = self._steps_within(now_s - self._began_s)
        self._steps = min(self._steps, math.floor(done) + 1)
        return self._began_s + self._decode_s(self._steps)

    def finish(self, now_s: float) -> list[Request]:
        """Ends the run of steps that ends now. Returns the requests that have ended in it."""
        self.busy_s += now_s - self._began_s
        if self._parts:
            ended = self._finish_mixed(now_s)
        else:
            self._order += self._steps
            self.held_tokens += self._decoding * self._steps
            ended = []
        self._steps = 0
        return self._take_ended(ended, now_s)

    def stop(self) -> list[Request]:
        """The engine dies. Returns what it had; all of it must be computed anew elsewhere."""
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

    # Inside

    def _admit(self) -> None:
        """Requests start in their order, while there is room for their prompts and a token more."""
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
        """Spares a request what the prefix cache holds of its prompt. False: there is no room for it yet."""
        held = request.blocks[: cache.held(request.blocks)]
        tokens = request.prompt_tokens + request.output_tokens
        room = cache.take(held, max(0, -(-tokens // self._shape.block_tokens) - len(held)))
        if room is None:
            return False
        request.room = room
        request.cached_tokens = min(len(held) * self._shape.block_tokens, request.prompt_left - 1)
        request.prompt_left -= request.cached_tokens
        self.prefill_tokens -= request.cached_tokens
        return True

    def _begin_decoding(self) -> float:
        """Returns how long the batch can go on as it is."""
        self._make_room(1)
        steps = self._ends[0][0] - self._order
        room = (self._shape.kv_tokens - self.held_tokens) // self._decoding
        self._steps = max(1, min(steps, room) if self._decoding > 1 else steps)
        return self._decode_s(self._steps)

    def _decode_s(self, steps: int) -> float:
        """How long so many steps take, each with a token more of every sequence in the KV cache."""
        first = self._step.decode_s(self._decoding, self.held_tokens)
        return steps * first + self._step.per_resident_token_s * self._decoding * steps * (steps - 1) / 2

    def _steps_within(self, seconds: float) -> float:
        """The inverse of `_decode_s`, with a part of a step."""
        first = self._step.decode_s(self._decoding, self.held_tokens)
        growth = self._step.per_resident_token_s * self._decoding / 2
        if growth <= 1e-15:
            return seconds / first
        linear = first - growth
        return (math.sqrt(linear * linear + 4 * growth * seconds) - linear) / (2 * growth)

    def _make_room(self, steps: int) -> None:
        """Preempts the newest sequences until each of the others has room for its next tokens."""
        while self._decoding > 1 and self.held_tokens + self._decoding * steps > self._shape.kv_tokens:
            victim = self._joined.pop()
            if victim.end_step <= self._order or victim.ended_s >= 0:
                continue
            self._leave(victim)
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

    def _leave(self, request: Request) -> None:
        """A running sequence gives back its room."""
        self._decoding -= 1
        self.held_tokens -= request.held_tokens + self._order - request.join_step
        if self._cache is not None and request.room is not None:
            self._cache.release(request.room)
            request.room = None

    def _finish_mixed(self, now_s: float) -> list[Request]:
        self._order += 1
        self.held_tokens += self._decoding
        ended: list[Request] = []
        for request, part in self._parts:
            request.prompt_left -= part
            self.prefill_tokens -= part
            if not request.prompt_left:
                self._begin_writing(request, now_s, ended)
        self._parts = []
        if ended or any(not request.prompt_left for request in self._prefilling):
            self._prefilling = [request for request in self._prefilling if request.prompt_left]
        return ended

    def _begin_writing(self, request: Request, now_s: float, ended: list[Request]) -> None:
        """A prompt is computed, and the step has brought the next token."""
        if request.first_token_s < 0:
            request.first_token_s = now_s
            self.first_tokens.append(request)
        if self._cache is not None and request.room is not None:
            self._cache.share(request.room, request.blocks[request.cached_tokens // self._shape.block_tokens :])
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

    def _take_ended(self, ended: list[Request], now_s: float) -> list[Request]:
        while self._ends and self._ends[0][0] <= self._order:
            ended.append(heapq.heappop(self._ends)[2])
        for request in ended:
            request.ended_s = now_s
            request.written_tokens = request.output_tokens
            self._leave(request)
        if len(self._joined) > 4 * self._decoding + 64:
            self._joined = [request for request in self._joined if request.ended_s < 0 and request.end_step > self._order]
        return ended
