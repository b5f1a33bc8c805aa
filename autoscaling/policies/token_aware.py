"""Our policy: provisions for the demand of the time when a replica that is asked for now will be ready, learnt from the demand so far.

Theory of operation:

* Demand is counted in replicas, from the tokens that come and what they cost one (`Capacity.replicas_of_request`): reading weights and KV
  caches, computing prompts, memory. BULK requests are no demand; they fill what is idle.
* Known bursts are provided for. The demand of the last hour is replayed against ever fewer replicas (`replay`), to find how few would have
  kept the promised part of the requests within their TTFT. Bursts shorter than the patience of the target cost nothing, and rare ones only
  as much as the promise requires; no burst is chased that will be over before a replica has started.
* The level is forecast over the start-up time: history is scaled from the level at its time to the level that a line through the last
  minutes reaches when replicas asked for now are ready.
* What history has never seen is a new level: when the last seconds bring more than any like them, what they bring is provided for at once,
  with what waits already, to be worked off within half a start-up.
* Scaling down is tried out first: the same replay with a tenth more demand must do with fewer replicas, and must have done so for the time
  of two start-ups. So a count that has just been left is not wanted again at once.
* A pool that may go to zero does so when nothing has come for as long; the first request brings it back.
"""

import math
from dataclasses import dataclass

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.policies.replay import needed
from autoscaling.signals import PoolSignals, PoolSpec

BIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Tuning:
    """headroom: how much more demand is provided for than is expected. The rest are spans.

    history_s: of demand that is replayed. level_s: over which a level is taken. short_s: of the newest demand, to find a new level by.
    period_s: between two replays. idle_s: without requests until a pool goes to zero, at least two start-ups.
    """

    headroom: float = 1.1
    spare_fraction: float = 0.1
    history_s: float = 3600.0
    level_s: float = 300.0
    short_s: float = 10.0
    period_s: float = 10.0
    idle_s: float = 300.0


@dataclass(slots=True)
class _Memory:
    """The state between calls. bins: demand by BIN_S, the newest last and complete; highest: that short_s of the bins ever were, by bin."""

    bins: list[float]
    bin_began_s: float
    bin_sum: float
    asked_s: float
    began_s: float
    last_request_s: float
    provided: int
    spare: int
    replayed_s: float
    wants: list[tuple[float, int]]
    target: int

    @classmethod
    def of(cls, state: State, signals: PoolSignals, now_s: float) -> "_Memory":
        """What was remembered, or a beginning."""
        if not state:
            replicas = signals.replicas
            return cls([], now_s, 0.0, now_s, now_s, now_s, 0, replicas, -math.inf, [(now_s, replicas)], replicas)
        values = dict(state)
        return cls(**{**values, "wants": [tuple(entry) for entry in values["wants"]], "bins": list(values["bins"])})

    def state(self) -> State:
        """As JSON holds it."""
        return {name: getattr(self, name) for name in self.__slots__}


def token_aware(tuning: Tuning = Tuning()) -> Policy:
    """The policy."""

    def policy(signals: PoolSignals, spec: PoolSpec, state: State, now_s: float) -> tuple[Decision, State]:
        memory = _Memory.of(state, signals, now_s)
        startup_s = signals.startup_s or spec.startup_s
        rate = _note(memory, signals, spec, tuning, now_s)
        if now_s - memory.replayed_s >= tuning.period_s:
            _replay(memory, spec, tuning, startup_s, now_s)
        sudden = _sudden(memory, signals, spec, tuning, startup_s, rate)
        up = max(memory.provided, sudden)
        memory.wants = [entry for entry in memory.wants if entry[0] > now_s - 2 * startup_s] + [(now_s, max(memory.spare, sudden))]
        memory.wants = _thinned(memory.wants)
        hold = max(entry[1] for entry in memory.wants)
        decision = _decide(memory, signals, spec, tuning, startup_s, up=up, hold=hold, sudden=sudden, now_s=now_s)
        memory.target = decision.replicas
        return decision, memory.state()

    return policy


def _note(memory: _Memory, signals: PoolSignals, spec: PoolSpec, tuning: Tuning, now_s: float) -> float:
    """Enters the newest demand into its bin. Returns it, in replicas."""
    urgent = signals.urgent
    rate = urgent.arrived_requests_per_s
    demand = 0.0
    if rate > 0:
        inputs, outputs = urgent.arrived_input_tokens_per_s / rate, urgent.arrived_output_tokens_per_s / rate
        demand = rate * spec.capacity.replicas_of_request(inputs, outputs, spec.targets.tpot_s)
    if rate > 0 or urgent.waiting_requests:
        memory.last_request_s = now_s
    memory.bin_sum += demand * (now_s - memory.asked_s)
    memory.asked_s = now_s
    bins = int((now_s - memory.bin_began_s) / BIN_S)
    if bins:
        memory.bins += [memory.bin_sum / (bins * BIN_S)] * bins
        memory.bins = memory.bins[-int(tuning.history_s / BIN_S) :]
        memory.bin_began_s += bins * BIN_S
        memory.bin_sum = 0.0
    return demand


def _replay(memory: _Memory, spec: PoolSpec, tuning: Tuning, startup_s: float, now_s: float) -> None:
    """What history, brought to the level that is ahead, needs; and what it would need with some to spare."""
    memory.replayed_s = now_s
    expected = _at_level_ahead(memory.bins, tuning, startup_s)
    # A prompt takes its own time too, some tenths of a second, and replicas are not loaded quite alike.
    patience_s = 0.8 * spec.targets.ttft_s
    miss_fraction = 0.5 * (1 - spec.targets.attainment_fraction)
    memory.provided, memory.spare = (
        needed(
            [each * factor for each in expected],
            bin_s=BIN_S,
            patience_s=patience_s,
            miss_fraction=miss_fraction,
            most=spec.max_replicas,
        )
        for factor in (tuning.headroom, tuning.headroom * (1 + tuning.spare_fraction))
    )


def _at_level_ahead(bins: list[float], tuning: Tuning, startup_s: float) -> list[float]:
    """History as it would be at the level to which the last minutes lead."""
    width = max(1, int(tuning.level_s / BIN_S))
    if len(bins) < 2 * width:
        return bins
    sums = [0.0]
    for each in bins:
        sums.append(sums[-1] + each)
    overall = sums[-1] / len(bins)
    if not overall:
        return bins
    now = (sums[-1] - sums[-1 - width]) / width
    before = (sums[-1 - width] - sums[-1 - 2 * width]) / width
    ahead = max(0.0, now + max(0.0, now - before) * (startup_s + tuning.level_s / 2) / tuning.level_s)
    # Where demand comes in bursts, its level of some minutes says little: between the two, by how much levels vary at all.
    levels = [(sums[end] - sums[end - width]) / width for end in range(width, len(bins) + 1, width)]
    steady = _steadiness(levels)
    ahead = steady * ahead + (1 - steady) * max(overall, ahead)
    return [each * _ratio(ahead, steady * _level(sums, place, width) + (1 - steady) * overall) for place, each in enumerate(bins)]


def _steadiness(levels: list[float]) -> float:
    """1 where each level is like the one before, 0 where one says nothing of the next. Source: von Neumann's ratio, Annals of Mathematical
    Statistics 12, 1941."""
    mean = sum(levels) / len(levels)
    variance = sum((each - mean) ** 2 for each in levels) / len(levels)
    if variance <= 0.01 * mean * mean or len(levels) < 4:
        return 1.0
    steps = sum((after - before) ** 2 for before, after in zip(levels, levels[1:], strict=False)) / (len(levels) - 1)
    return max(0.0, min(1.0, 1 - steps / (2 * variance)))


def _level(sums: list[float], place: int, width: int) -> float:
    """Mean around a bin."""
    first, last = max(0, place - width // 2), min(len(sums) - 1, place + width // 2 + 1)
    return (sums[last] - sums[first]) / (last - first)


def _ratio(ahead: float, level: float) -> float:
    return min(5.0, ahead / level) if level > 0 else 1.0


def _sudden(memory: _Memory, signals: PoolSignals, spec: PoolSpec, tuning: Tuning, startup_s: float, rate: float) -> int:
    """Replicas for a level that has not been there before; 0 where what comes now is nothing new."""
    width = max(1, int(tuning.short_s / BIN_S))
    newest = memory.bins[-width:]
    if not newest:
        return 1 if rate or signals.urgent.waiting_requests else 0
    short = sum(newest) / len(newest)
    if short * tuning.headroom <= memory.provided:
        return 1 if rate or signals.urgent.waiting_requests else 0
    older = memory.bins[: -2 * width]
    highest = 0.0
    total = sum(older[:width])
    for place in range(width, len(older)):
        highest = max(highest, total)
        total += older[place] - older[place - width]
    if short <= max(highest, total) / width:
        return 1
    waiting = signals.urgent
    backlog = 0.0
    if waiting.waiting_requests:
        inputs = waiting.waiting_tokens / waiting.waiting_requests
        backlog = waiting.waiting_requests * spec.capacity.replicas_of_request(0.8 * inputs, 0.2 * inputs, spec.targets.tpot_s)
    return math.ceil(tuning.headroom * (short + backlog / max(10.0, startup_s / 2)))


def _thinned(wants: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Only those that a maximum over the time since can still meet."""
    kept: list[tuple[float, int]] = []
    for entry in wants:
        while kept and kept[-1][1] <= entry[1]:
            kept.pop()
        kept.append(entry)
    return kept


def _decide(
    memory: _Memory,
    signals: PoolSignals,
    spec: PoolSpec,
    tuning: Tuning,
    startup_s: float,
    *,
    up: int,
    hold: int,
    sudden: int,
    now_s: float,
) -> Decision:
    idle_s = now_s - memory.last_request_s
    if spec.min_replicas == 0 and idle_s >= max(tuning.idle_s, 2 * startup_s) and not signals.urgent.waiting_requests:
        return Decision(0, f"nothing has come for {idle_s:.0f} s")
    floor = max(spec.min_replicas, 1 if memory.target or sudden or signals.urgent.waiting_requests else 0)
    up, hold = max(up, floor), max(hold, floor)
    if up > memory.target:
        why = f"what comes now is new and needs {up}" if sudden >= memory.provided else f"demand in {startup_s:.0f} s needs {up}"
        return Decision(spec.bounded(up), why)
    if hold < memory.target and now_s - memory.began_s >= max(tuning.level_s * 2, 2 * startup_s):
        return Decision(spec.bounded(hold), f"{hold} would have done for {2 * startup_s:.0f} s, with a tenth to spare")
    return Decision(spec.bounded(memory.target), f"demand in {startup_s:.0f} s needs {up}, with a tenth to spare {hold}")
