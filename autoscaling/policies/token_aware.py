"""Our policy: provisions for the demand of the time when a replica that is asked for now will be ready, learnt from the demand so far.

Theory of operation:

* Demand is counted in replicas, from the tokens that come and what they cost one (`Capacity.replicas_of_request`): reading weights and KV
  caches, computing prompts, memory. BULK requests are no demand; they fill what is idle.
* Known bursts are provided for. The demand of the last hours is replayed against ever fewer replicas (`replay`), to find how few would have
  kept the promised part of the requests within their TTFT. Bursts shorter than the patience of the target cost nothing, and rare ones only
  as much as the promise requires; no burst is chased that will be over before a replica has started.
* The level is forecast over the start-up time: history is scaled from the level at its time to that which lies ahead (`levels`).
* What history has never seen is a new level: when the last seconds bring more than any like them, what they bring is provided for at once,
  with what will wait by the time that replicas are ready, to be worked off within half a start-up.
* Scaling down is tried out first: the same replay with a tenth more demand must do with fewer replicas, what runs now must fit on them, and
  both must have been so for more than the time of two start-ups. So a count that has just been left is not wanted again at once.
* A pool that may go to zero does so when nothing has come for as long; the first request brings it back.
"""

import math
from dataclasses import dataclass

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.policies.levels import at_level_ahead, highest_mean, whole
from autoscaling.policies.replay import enter, needed
from autoscaling.signals import ClassDemand, PoolSignals, PoolSpec

BIN_S = 2.0
_PATIENCE = 0.8
"""Of the TTFT target, what a request may wait: its prompt takes time too, and replicas are not loaded quite alike."""
_FULL = 0.9
"""Of a replica's KV cache and places, what may be taken where its load has been joined by that of another."""
_LONGEST_QUEUE_S = 60.0
"""Of waiting that is worked off; who has waited for longer is gone or refused."""
_LEAST_CATCH_UP_S = 30.0


@dataclass(frozen=True, slots=True)
class Tuning:
    """headroom: demand that is provided for, over the expected. miss_share: of the misses that targets allow, those that are planned with.
    spare_fraction: more demand that fewer replicas must bear. hold_startups: for how many start-ups they must have done.

    history_s: of demand that is replayed. level_s: over which a level is taken. short_s: of the newest demand, to find a new level by.
    period_s: between two replays. idle_s: without requests until a pool goes to zero, at least two start-ups.
    """

    headroom: float = 1.0
    miss_share: float = 0.8
    spare_fraction: float = 0.1
    hold_startups: float = 2.5
    history_s: float = 7200.0
    level_s: float = 300.0
    short_s: float = 10.0
    period_s: float = 10.0
    idle_s: float = 300.0


@dataclass(slots=True)
class _Memory:
    """The state between calls.

    asked: what came, in bins of BIN_S; work: the same, with answers spread over the time that they are written in; the last asked and the
    first ahead are still filling. provided, spare: what the last replay found, without and with demand to spare. wants: by moment, counts
    that would have done; those only that the highest over a time can still be.
    """

    asked: list[float]
    work: list[float]
    ahead: list[float]
    bin_began_s: float
    called_s: float
    began_s: float
    last_request_s: float
    provided: int
    spare: int
    replayed_s: float
    wants: list[list[float]]
    target: int

    @classmethod
    def of(cls, state: State, signals: PoolSignals, now_s: float) -> "_Memory":
        """What was remembered, or a beginning."""
        if state:
            lists = {name: list(state[name]) for name in ("asked", "work", "ahead", "wants")}
            return cls(**{**state, **lists})
        replicas = signals.replicas
        return cls([0.0], [], [0.0], now_s, now_s, now_s, now_s, 0, replicas, now_s - 1e9, [[now_s, replicas]], replicas)

    def state(self) -> State:
        """As JSON holds it."""
        return {name: getattr(self, name) for name in self.__slots__}


def token_aware(tuning: Tuning = Tuning()) -> Policy:
    """The policy."""

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        memory = _Memory.of(state, signals, now_s)
        startup_s = signals.startup_s or spec.startup_s
        _note(memory, signals.urgent, spec, tuning, now_s)
        if now_s - memory.replayed_s >= tuning.period_s:
            memory.replayed_s = now_s
            expected = at_level_ahead(memory.work, round(tuning.level_s / BIN_S), startup_s / BIN_S)
            memory.provided = _replayed(expected, spec, tuning, tuning.headroom)
            memory.spare = _replayed(expected, spec, tuning, tuning.headroom * (1 + tuning.spare_fraction))
        sudden = _sudden(memory, signals, spec, tuning, startup_s)
        decision = _decide(memory, signals, spec, tuning, sudden, now_s)
        memory.target = decision.replicas
        return decision, memory.state()

    return policy


def _note(memory: _Memory, demand: ClassDemand, spec: PoolSpec, tuning: Tuning, now_s: float) -> None:
    """Enters what has come since the call before, and closes bins that are past."""
    rate = demand.arrived_requests_per_s
    if rate > 0 or demand.waiting_requests:
        memory.last_request_s = now_s
    if rate > 0:
        lengths = demand.arrived_input_tokens_per_s / rate, demand.arrived_output_tokens_per_s / rate
        requests, tpot_s = rate * (now_s - memory.called_s), spec.targets.tpot_s
        memory.asked[-1] += requests * spec.capacity.replicas_of_request(*lengths, tpot_s) / BIN_S
        enter(memory.ahead, 0, BIN_S, requests, lengths, spec.capacity, tpot_s)
    memory.called_s = now_s
    if bins := int((now_s - memory.bin_began_s) / BIN_S):
        kept = round(tuning.history_s / BIN_S)
        memory.ahead.extend([0.0] * (bins + 1 - len(memory.ahead)))
        memory.work = [*memory.work, *memory.ahead[:bins]][-kept:]
        memory.ahead = memory.ahead[bins:]
        memory.asked = [*memory.asked, *([0.0] * bins)][-kept:]
        memory.bin_began_s += bins * BIN_S


def _replayed(expected: list[float], spec: PoolSpec, tuning: Tuning, times: float) -> int:
    """Replicas that keep the promise under the expected demand, taken so many times."""
    targets = spec.targets
    miss_fraction = tuning.miss_share * (1 - targets.attainment_fraction)
    patience_s = _PATIENCE * targets.ttft_s
    return needed(
        [times * each for each in expected], bin_s=BIN_S, patience_s=patience_s, miss_fraction=miss_fraction, most=spec.max_replicas
    )


def _sudden(memory: _Memory, signals: PoolSignals, spec: PoolSpec, tuning: Tuning, startup_s: float) -> int:
    """Replicas for a level that has not been there before; 0 where what comes now is nothing new."""
    width = max(1, round(tuning.short_s / BIN_S))
    complete = memory.asked[:-1]
    # A jump is seen in the newest two bins as well as in the last seconds, where it is large.
    short = max(highest_mean(complete[-width:], width), highest_mean(complete[-2:], 2) / 1.5)
    if short <= max(memory.provided, signals.ready_replicas) or short <= 1.1 * highest_mean(complete[:-width], width):
        return 0
    lacking = max(0.0, short - signals.ready_replicas)
    backlog = lacking * min(startup_s, _LONGEST_QUEUE_S)
    return whole(tuning.headroom * (short + backlog / max(_LEAST_CATCH_UP_S, startup_s / 2)))


def _decide(memory: _Memory, signals: PoolSignals, spec: PoolSpec, tuning: Tuning, sudden: int, now_s: float) -> Decision:
    startup_s = signals.startup_s or spec.startup_s
    waiting = signals.urgent.waiting_requests
    quiet_s = now_s - memory.last_request_s
    if spec.min_replicas == 0 and not waiting and quiet_s >= max(tuning.idle_s, 2 * startup_s):
        return Decision(0, f"nothing has come for {quiet_s:.0f} s")
    floor = 1 if memory.target or quiet_s == 0 else 0
    up = spec.bounded(max(memory.provided, sudden, floor))
    hold_s = tuning.hold_startups * startup_s
    hold = spec.bounded(max(_held(memory, max(memory.spare, sudden), hold_s, now_s), _running(signals, spec), floor))
    if up > memory.target:
        if memory.target == 0:
            return Decision(up, f"requests have come to a pool at zero, {waiting:.0f} wait")
        return Decision(up, f"what comes is new and needs {up}" if sudden > memory.provided else f"demand in {startup_s:.0f} s needs {up}")
    if hold < memory.target and now_s - memory.began_s >= max(2 * tuning.level_s, hold_s):
        return Decision(hold, f"{hold} would have done for {hold_s:.0f} s, with a tenth to spare")
    return Decision(spec.bounded(memory.target), f"demand in {startup_s:.0f} s needs {up}, with a tenth to spare {hold}")


def _held(memory: _Memory, want: int, hold_s: float, now_s: float) -> int:
    """The most that was wanted in hold_s."""
    while memory.wants and memory.wants[-1][1] <= want:
        memory.wants.pop()
    memory.wants = [entry for entry in memory.wants if entry[0] > now_s - hold_s] + [[now_s, want]]
    return int(memory.wants[0][1])


def _running(signals: PoolSignals, spec: PoolSpec) -> int:
    """Replicas that what runs now would fit on."""
    tokens, requests = signals.running_tokens / spec.capacity.kv_tokens, signals.running_requests / spec.capacity.max_requests
    return math.ceil(max(tokens, requests) / _FULL)
