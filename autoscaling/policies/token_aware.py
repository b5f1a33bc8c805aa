"""The default policy: it provides replicas for the demand expected when a replica that is requested now becomes ready.

Theory of operation:

* Demand is measured in replicas, computed from the tokens of the arriving requests and a replica's `Capacity`: reading weights and KV
  caches, computing prompts, and memory. BULK requests do not count as demand, because they fill idle capacity.
* Known bursts are provided for. The demand of the last hours is replayed against ever fewer replicas (`demand_replay`), to find how few
  would have served the promised fraction of requests within their TTFT target. Bursts shorter than the target's patience cost nothing, and
  rare bursts cost only as much as the promise requires. The policy does not chase a burst that will end before a replica has started.
* The level is forecast over the start-up time: history is scaled from the level at its time to the expected level (`level_forecast`).
* A load that history has never seen is a new level. If the last seconds bring clearly more demand than any earlier ones, the policy
  provides for it at once, including the queue that will build up until the new replicas are ready, which is to be worked off within half a
  start-up. The newest of these seconds determine the new level, because the oldest may precede the jump.
* Scaling down is tested first: the same replay with 10% more demand must need fewer replicas, the running requests must fit on them, and
  both must have held for two start-ups and a little longer. A count that the pool has just left is therefore not wanted again at once.
* A pool that may scale to zero does so after a time without requests. The first request brings it back.
"""

import math
from dataclasses import dataclass

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.policies.demand_replay import REACTION_THRESHOLD, add_demand, extrapolate_rise, reactive_replicas, replicas_needed
from autoscaling.policies.level_forecast import factors_to_expected_level, highest_mean, round_up
from autoscaling.signals import ClassDemand, PoolSignals, PoolSpec

BIN_S = 2.0
"""Width of the bins in which demand is recorded, in seconds."""
_PATIENCE_FRACTION = 0.8
"""Fraction of the TTFT target that a request may wait. The rest is for its prefill and for uneven load across replicas."""
_MAX_FILL_FRACTION = 0.9
"""Fraction of a replica's KV cache and request slots that may be filled when the load of a removed replica is added."""
_REACTION_WINDOW_BINS = 10
_MAX_CAUTION = 8.0
_MAX_RISE_S = 60.0
_MAX_QUEUE_S = 60.0
"""Maximum waiting time that is worked off, in seconds. Requests that have waited longer have left or were refused."""
_MIN_CATCH_UP_S = 15.0
_NEW_LEVEL_RULES = ((0.0, 3.0), (0.15, 2.0), (0.25, 1.5), (0.4, 1.2), (0.6, 1.0))
"""Pairs of a fraction of the start-up time and a factor. Demand is a new level if it exceeds the known demand by the factor for that time.

A small rise can wait longer, and with a long start-up, reacting to a burst that ends before the replicas are ready would cost more."""
_MIN_NEW_LEVEL_S, _MAX_NEW_LEVEL_S = 6.0, 60.0
_NEWEST_BINS, _MAX_NEWEST_FACTOR = 2, 2.0
"""The bins that determine the height of a new level, and the maximum factor by which they may exceed its mean, because they are few."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Parameters of the policy."""

    headroom: float = 1.1
    """Factor of the expected demand that the pool provides for."""
    miss_share: float = 0.8
    """Fraction of the misses allowed by the attainment target that the policy plans to use."""
    spare_fraction: float = 0.1
    """Additional demand that a smaller pool must be able to serve before the policy scales down."""
    hold_startups: float = 2.0
    """Number of start-up times for which fewer replicas must have been sufficient before the policy scales down."""
    hold_beyond_s: float = 90.0
    """Additional time for which fewer replicas must have been sufficient, because traffic varies independently of the start-up time."""
    history_s: float = 7200.0
    """Length of the demand history that is replayed, in seconds."""
    level_s: float = 300.0
    """Width of the window over which a demand level is averaged, in seconds."""
    period_s: float = 10.0
    """Time between two replays, in seconds."""
    idle_s: float = 300.0
    """Time without requests until the pool scales to zero, in seconds. At least two start-up times are waited."""

    def hold_s(self, startup_s: float) -> float:
        """Returns how long fewer replicas must have been sufficient before the policy scales down, in seconds."""
        return self.hold_startups * startup_s + self.hold_beyond_s


@dataclass(slots=True)
class _Memory:
    """The state between calls. All values are JSON-serializable."""

    arrived_demand: list[float]
    """Demand by bin of arrival, in replicas. The last bin is still filling."""
    spread_demand: list[float]
    """Demand of the complete bins, with the demand of answers spread over the time in which they are generated."""
    future_demand: list[float]
    """The continuation of `spread_demand`: the current bin, and later bins in which answers will still be generated."""
    bin_began_s: float
    """Start of the current bin."""
    last_call_s: float
    """Time of the previous call."""
    began_s: float
    """Time of the first call."""
    last_request_s: float
    """Last time at which requests arrived or waited."""
    needed: int
    """Replicas that the last replay found necessary."""
    needed_with_spare: int
    """Replicas that the last replay found necessary for `spare_fraction` more demand."""
    replayed_s: float
    """Time of the last replay."""
    recent_wants: list[list[float]]
    """Times and replica counts that would have been sufficient, reduced to those that can still be a maximum: counts decrease."""
    scaled_down_s: float
    """When the policy last scaled down."""
    caution: float
    """Factor by which the hold time is currently prolonged."""
    target: int
    """The last decided replica count."""

    @classmethod
    def restore(cls, state: State, signals: PoolSignals, now_s: float) -> "_Memory":
        """Returns the memory kept in `state`, or a new one if the state is empty."""
        if state:
            lists = {name: list(state[name]) for name in ("arrived_demand", "spread_demand", "future_demand", "recent_wants")}
            return cls(**{**state, **lists})
        replicas = signals.replicas
        return cls([0.0], [], [0.0], now_s, now_s, now_s, now_s, 0, replicas, now_s - 1e9, [[now_s, replicas]], now_s - 1e9, 1.0, replicas)

    def state(self) -> State:
        """Returns the memory as a JSON-serializable mapping."""
        return {name: getattr(self, name) for name in self.__slots__}


def token_aware(tuning: Tuning = Tuning()) -> Policy:
    """Returns the policy with the given parameters."""

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        memory = _Memory.restore(state, signals, now_s)
        startup_s = signals.startup_s or spec.startup_s
        _record(memory, signals.urgent, spec, tuning, now_s)
        if now_s - memory.replayed_s >= tuning.period_s:
            memory.replayed_s = now_s
            _replay(memory, spec, tuning, startup_s)
        reactive = max(
            _replicas_for_new_level(memory, signals, spec, tuning, startup_s), _replicas_for_rise(memory, signals, spec, tuning, startup_s)
        )
        decision = _decide(memory, signals, spec, tuning, reactive, now_s)
        _adapt_caution(memory, decision.replicas, tuning.hold_s(startup_s), now_s)
        return decision, memory.state()

    return policy


def _record(memory: _Memory, demand: ClassDemand, spec: PoolSpec, tuning: Tuning, now_s: float) -> None:
    """Records the demand since the previous call, and closes the bins that have ended."""
    rate = demand.arrived_requests_per_s
    if rate > 0 or demand.waiting_requests:
        memory.last_request_s = now_s
    if rate > 0:
        lengths = demand.arrived_input_tokens_per_s / rate, demand.arrived_output_tokens_per_s / rate
        requests, tpot_s = rate * (now_s - memory.last_call_s), spec.targets.tpot_s
        memory.arrived_demand[-1] += requests * spec.capacity.replicas_of_request(*lengths, tpot_s) / BIN_S
        add_demand(memory.future_demand, 0, BIN_S, requests, lengths, spec.capacity, tpot_s)
    memory.last_call_s = now_s
    if bins := int((now_s - memory.bin_began_s) / BIN_S):
        kept = round(tuning.history_s / BIN_S)
        memory.future_demand.extend([0.0] * (bins + 1 - len(memory.future_demand)))
        memory.spread_demand = [*memory.spread_demand, *memory.future_demand[:bins]][-kept:]
        memory.future_demand = memory.future_demand[bins:]
        memory.arrived_demand = [*memory.arrived_demand, *([0.0] * bins)][-kept:]
        memory.bin_began_s += bins * BIN_S


def _replay(memory: _Memory, spec: PoolSpec, tuning: Tuning, startup_s: float) -> None:
    """Finds the replicas that keep the promise, with and without spare demand, if history repeats itself at the expected level."""
    factors = factors_to_expected_level(memory.spread_demand, round(tuning.level_s / BIN_S), startup_s / BIN_S)
    arrived = [each * by for each, by in zip(memory.arrived_demand[-len(factors) - 1 :], factors, strict=False)]
    delay, hold = math.ceil(startup_s / BIN_S), round(tuning.hold_s(startup_s) / BIN_S)
    reactive = reactive_replicas(arrived, window=_REACTION_WINDOW_BINS, delay=delay, hold=hold, ahead_windows=_ahead_windows(startup_s))
    memory.needed, memory.needed_with_spare = (
        replicas_needed(
            [each * by * scale for each, by in zip(memory.spread_demand, factors, strict=True)],
            bin_s=BIN_S,
            patience_s=_PATIENCE_FRACTION * spec.targets.ttft_s,
            miss_fraction=tuning.miss_share * (1 - spec.targets.attainment_fraction),
            max_replicas=spec.max_replicas,
            reactive=[each * scale for each in reactive],
        )
        for scale in (tuning.headroom, tuning.headroom * (1 + tuning.spare_fraction))
    )


def _ahead_windows(startup_s: float) -> float:
    """Returns by how many windows a rise is extrapolated."""
    return 0.5 + min(startup_s, _MAX_RISE_S) / (_REACTION_WINDOW_BINS * BIN_S)


def _replicas_for_rise(memory: _Memory, signals: PoolSignals, spec: PoolSpec, tuning: Tuning, startup_s: float) -> int:
    """Returns the replicas for the current demand and queue, or 0 if that is not clearly more than the replay found necessary."""
    bins = memory.arrived_demand[-1 - 3 * _REACTION_WINDOW_BINS : -1]
    if len(bins) < 3 * _REACTION_WINDOW_BINS:
        return 0
    means = [
        sum(bins[first : first + _REACTION_WINDOW_BINS]) / _REACTION_WINDOW_BINS for first in range(0, len(bins), _REACTION_WINDOW_BINS)
    ]
    expected = tuning.headroom * extrapolate_rise(means[2], means[1], means[0], _ahead_windows(startup_s))
    backlog = _backlog_replica_s(signals, spec)
    if backlog > _PATIENCE_FRACTION * spec.targets.ttft_s * signals.ready_replicas:
        expected += backlog / max(_MIN_CATCH_UP_S, startup_s / 2)
    return round_up(expected) if expected > REACTION_THRESHOLD * memory.needed else 0


def _backlog_replica_s(signals: PoolSignals, spec: PoolSpec) -> float:
    """Returns the work of the waiting requests in replica-seconds. Their prompts are assumed to be three quarters of their tokens."""
    waiting = signals.urgent
    if not waiting.waiting_requests:
        return 0.0
    tokens = waiting.waiting_tokens / waiting.waiting_requests
    each = spec.capacity.replicas_of_request(0.75 * tokens, 0.25 * tokens, spec.targets.tpot_s)
    return waiting.waiting_requests * each


def _replicas_for_new_level(memory: _Memory, signals: PoolSignals, spec: PoolSpec, tuning: Tuning, startup_s: float) -> int:
    """Returns the replicas for a demand level that has not occurred before, or 0 if the current demand is not new."""
    complete, known = memory.arrived_demand[:-1], max(memory.needed, signals.ready_replicas)
    level = max(
        _new_level(complete, known, min(_MAX_NEW_LEVEL_S, _MIN_NEW_LEVEL_S + fraction * startup_s), factor)
        for fraction, factor in _NEW_LEVEL_RULES
    )
    if not level:
        return 0
    lacking = max(0.0, level - signals.ready_replicas)
    backlog = lacking * min(startup_s, _MAX_QUEUE_S)
    return round_up(tuning.headroom * (level + backlog / max(_MIN_CATCH_UP_S, startup_s / 2)))


def _new_level(demand: list[float], known: float, duration_s: float, factor: float) -> float:
    """Returns the level of the last `duration_s` seconds if it exceeds `factor` times the known level and all earlier demand, otherwise
    0."""
    width = max(1, round(duration_s / BIN_S))
    mean = highest_mean(demand[-width:], width)
    if mean <= factor * known or mean <= 1.1 * highest_mean(demand[:-width], width):
        return 0.0
    return max(mean, min(_MAX_NEWEST_FACTOR * mean, highest_mean(demand[-_NEWEST_BINS:], _NEWEST_BINS)))


def _decide(memory: _Memory, signals: PoolSignals, spec: PoolSpec, tuning: Tuning, reactive: int, now_s: float) -> Decision:
    startup_s = signals.startup_s or spec.startup_s
    waiting = signals.urgent.waiting_requests
    quiet_s = now_s - memory.last_request_s
    if spec.min_replicas == 0 and not waiting and quiet_s >= max(tuning.idle_s, 2 * startup_s):
        return Decision(0, f"no requests for {quiet_s:.0f} s")
    floor = 1 if memory.target or quiet_s == 0 else 0
    up = spec.bounded(max(memory.needed, reactive, floor))
    hold_s = memory.caution * tuning.hold_s(startup_s)
    recent_max = _recent_max(memory, max(memory.needed, memory.needed_with_spare, reactive), hold_s, now_s)
    down = spec.bounded(max(recent_max, _replicas_for_running(signals, spec), floor))
    if up > memory.target:
        if memory.target == 0:
            return Decision(up, f"requests arrived at a pool scaled to zero, {waiting:.0f} are waiting")
        return Decision(up, f"new demand level needs {up}" if reactive > memory.needed else f"demand in {startup_s:.0f} s needs {up}")
    if down < memory.target and now_s - memory.began_s >= max(2 * tuning.level_s, hold_s):
        return Decision(down, f"{down} would have sufficed for {hold_s:.0f} s, with 10% spare")
    return Decision(spec.bounded(memory.target), f"demand in {startup_s:.0f} s needs {up}, with 10% spare {down}")


def _adapt_caution(memory: _Memory, replicas: int, hold_s: float, now_s: float) -> None:
    """Doubles the caution if a scale-down was soon reversed, and halve it if none was for a long time."""
    if replicas > memory.target and now_s - memory.scaled_down_s < 2 * hold_s:
        memory.caution, memory.scaled_down_s = min(_MAX_CAUTION, 2 * memory.caution), now_s - 1e9
    elif replicas < memory.target:
        if now_s - memory.scaled_down_s > 8 * hold_s:
            memory.caution = max(1.0, memory.caution / 2)
        memory.scaled_down_s = now_s
    memory.target = replicas


def _recent_max(memory: _Memory, want: int, hold_s: float, now_s: float) -> int:
    """Returns the maximum of `want` over the last `hold_s` seconds, including now."""
    while memory.recent_wants and memory.recent_wants[-1][1] <= want:
        memory.recent_wants.pop()
    memory.recent_wants = [entry for entry in memory.recent_wants if entry[0] > now_s - hold_s] + [[now_s, want]]
    return int(memory.recent_wants[0][1])


def _replicas_for_running(signals: PoolSignals, spec: PoolSpec) -> int:
    """Returns the number of replicas that the running requests fit on."""
    tokens, requests = signals.running_tokens / spec.capacity.kv_tokens, signals.running_requests / spec.capacity.max_requests
    return math.ceil(max(tokens, requests) / _MAX_FILL_FRACTION)
