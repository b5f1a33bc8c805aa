"""Our policy: provisions for the demand of the time when a replica that is asked for now will be ready, learnt from the demand so far.

Theory of operation:

* Demand is counted in replicas, from the tokens that come and what they cost one (`Capacity.replicas_of_request`): reading weights and KV
  caches, computing prompts, memory. BULK requests are no demand; they fill what is idle.
* Known bursts are provided for. The demand of the last hours is replayed against ever fewer replicas (`replay`), to find how few would have
  kept the promised part of the requests within their TTFT. Bursts shorter than the patience of the target cost nothing, and rare ones only
  as much as the promise requires; no burst is chased that will be over before a replica has started.
* The level is forecast over the start-up time: history is scaled from the level at its time to that which lies ahead (`levels`).
* What history has never seen is a new level: when the last seconds bring more than any like them, what they bring is provided for at once,
  with what will wait by the time that replicas are ready, to be worked off within half a start-up. How high it is, the newest of these
  seconds say, since the first may still have been before it.
* Scaling down is tried out first: the same replay with a tenth more demand must do with fewer replicas, what runs now must fit on them, and
  both must have been so for the time of two start-ups and a little more. So a count that has just been left is not wanted again at once.
* A pool that may go to zero does so when nothing has come for as long; the first request brings it back.
"""

import math
from dataclasses import dataclass

from autoscaling.policies.decision import Decision, Policy, State
from autoscaling.policies.demand_replay import REACTED, enter, needed, reaction, rising
from autoscaling.policies.level_forecast import highest_mean, times_to_level_ahead, whole
from autoscaling.signals import ClassDemand, PoolSignals, PoolSpec

BIN_S = 2.0
_PATIENCE = 0.8
"""Of the TTFT target, what a request may wait: its prompt takes time too, and replicas are not loaded quite alike."""
_FULL = 0.9
"""Of a replica's KV cache and places, what may be taken where its load has been joined by that of another."""
_FOLLOWED_BINS = 10
_MAX_CAUTION = 8.0
_LONGEST_RISE_S = 60.0
_LONGEST_QUEUE_S = 60.0
"""Of waiting that is worked off; who has waited for longer is gone or refused."""
_MIN_CATCH_UP_S = 15.0
_RISES = ((0.0, 3.0), (0.15, 2.0), (0.25, 1.5), (0.4, 1.2), (0.6, 1.0))
"""For which part of a start-up how many times the known demand must have come to be a new level. The smaller a rise, the less it has to
hurry; and the longer a start-up, the more a burst that is over by then would cost."""
_SHORTEST_RISE_S, _LONGEST_LEVEL_S = 6.0, 60.0
_NEWEST_BINS, _MAX_NEWER = 2, 2.0
"""Of a rise, those that say how high it is, and how many times its mean they may: they are few."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """headroom: demand that is provided for, over the expected. miss_share: of the misses that targets allow, those that are planned with.
    spare_fraction: more demand that fewer replicas must bear. hold_startups, hold_beyond_s: for how many start-ups, and how long beyond,
    they must have done: traffic wavers at its own pace, however long a start-up is.

    history_s: of demand that is replayed. level_s: over which a level is taken.
    period_s: between two replays. idle_s: without requests until a pool goes to zero, at least two start-ups.
    """

    headroom: float = 1.1
    miss_share: float = 0.8
    spare_fraction: float = 0.1
    hold_startups: float = 2.0
    hold_beyond_s: float = 90.0
    history_s: float = 7200.0
    level_s: float = 300.0
    period_s: float = 10.0
    idle_s: float = 300.0

    def hold_s(self, startup_s: float) -> float:
        """For how long fewer replicas must have done."""
        return self.hold_startups * startup_s + self.hold_beyond_s


@dataclass(slots=True)
class _Memory:
    """The state between calls.

    asked: what came, in bins of BIN_S; work: the same, with answers spread over the time that they are written in; the last asked and the
    first ahead are still filling. provided, spare: what the last replay found, without and with demand to spare. wants: by moment, counts
    that would have done; those only that the highest over a time can still be. fell_s, caution: when the pool last was made smaller,
    and how many times as long as usual that is waited for.
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
    fell_s: float
    caution: float
    target: int

    @classmethod
    def of(cls, state: State, signals: PoolSignals, now_s: float) -> "_Memory":
        """What was remembered, or a beginning."""
        if state:
            lists = {name: list(state[name]) for name in ("asked", "work", "ahead", "wants")}
            return cls(**{**state, **lists})
        replicas = signals.replicas
        return cls([0.0], [], [0.0], now_s, now_s, now_s, now_s, 0, replicas, now_s - 1e9, [[now_s, replicas]], now_s - 1e9, 1.0, replicas)

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
            _replay(memory, spec, tuning, startup_s)
        sudden = max(_sudden(memory, signals, spec, tuning, startup_s), _followed(memory, signals, spec, tuning, startup_s))
        decision = _decide(memory, signals, spec, tuning, sudden, now_s)
        _learn(memory, decision.replicas, tuning.hold_s(startup_s), now_s)
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


def _replay(memory: _Memory, spec: PoolSpec, tuning: Tuning, startup_s: float) -> None:
    """Replicas that keep the promise, with and without demand to spare, if history comes again at the level that lies ahead."""
    times = times_to_level_ahead(memory.work, round(tuning.level_s / BIN_S), startup_s / BIN_S)
    asked = [each * by for each, by in zip(memory.asked[-len(times) - 1 :], times, strict=False)]
    delay, hold = math.ceil(startup_s / BIN_S), round(tuning.hold_s(startup_s) / BIN_S)
    followed = reaction(asked, window=_FOLLOWED_BINS, delay=delay, hold=hold, ahead=_led_on(startup_s))
    memory.provided, memory.spare = (
        needed(
            [each * by * more for each, by in zip(memory.work, times, strict=True)],
            bin_s=BIN_S,
            patience_s=_PATIENCE * spec.targets.ttft_s,
            miss_fraction=tuning.miss_share * (1 - spec.targets.attainment_fraction),
            most=spec.max_replicas,
            reacted=[each * more for each in followed],
        )
        for more in (tuning.headroom, tuning.headroom * (1 + tuning.spare_fraction))
    )


def _led_on(startup_s: float) -> float:
    """How many windows ahead a rise is led on."""
    return 0.5 + min(startup_s, _LONGEST_RISE_S) / (_FOLLOWED_BINS * BIN_S)


def _followed(memory: _Memory, signals: PoolSignals, spec: PoolSpec, tuning: Tuning, startup_s: float) -> int:
    """Replicas for what comes now and what waits, where that is clearly more than is provided for."""
    bins = memory.asked[-1 - 3 * _FOLLOWED_BINS : -1]
    if len(bins) < 3 * _FOLLOWED_BINS:
        return 0
    means = [sum(bins[first : first + _FOLLOWED_BINS]) / _FOLLOWED_BINS for first in range(0, len(bins), _FOLLOWED_BINS)]
    now = tuning.headroom * rising(means[2], means[1], means[0], _led_on(startup_s))
    backlog = _backlog(signals, spec)
    if backlog > _PATIENCE * spec.targets.ttft_s * signals.ready_replicas:
        now += backlog / max(_MIN_CATCH_UP_S, startup_s / 2)
    return whole(now) if now > REACTED * memory.provided else 0


def _backlog(signals: PoolSignals, spec: PoolSpec) -> float:
    """What waits, in replica-seconds. How much of it is prompt is not known: as of most requests, most."""
    waiting = signals.urgent
    if not waiting.waiting_requests:
        return 0.0
    tokens = waiting.waiting_tokens / waiting.waiting_requests
    each = spec.capacity.replicas_of_request(0.75 * tokens, 0.25 * tokens, spec.targets.tpot_s)
    return waiting.waiting_requests * each


def _sudden(memory: _Memory, signals: PoolSignals, spec: PoolSpec, tuning: Tuning, startup_s: float) -> int:
    """Replicas for a level that has not been there before; 0 where what comes now is nothing new."""
    complete, known = memory.asked[:-1], max(memory.provided, signals.ready_replicas)
    level = max(_risen(complete, known, min(_LONGEST_LEVEL_S, _SHORTEST_RISE_S + part * startup_s), times) for part, times in _RISES)
    if not level:
        return 0
    lacking = max(0.0, level - signals.ready_replicas)
    backlog = lacking * min(startup_s, _LONGEST_QUEUE_S)
    return whole(tuning.headroom * (level + backlog / max(_MIN_CATCH_UP_S, startup_s / 2)))


def _risen(demand: list[float], known: float, lasted_s: float, times: float) -> float:
    """The level of the last seconds, where they brought so many times what is known, and more than so many seconds have ever brought."""
    width = max(1, round(lasted_s / BIN_S))
    mean = highest_mean(demand[-width:], width)
    if mean <= times * known or mean <= 1.1 * highest_mean(demand[:-width], width):
        return 0.0
    return max(mean, min(_MAX_NEWER * mean, highest_mean(demand[-_NEWEST_BINS:], _NEWEST_BINS)))


def _decide(memory: _Memory, signals: PoolSignals, spec: PoolSpec, tuning: Tuning, sudden: int, now_s: float) -> Decision:
    startup_s = signals.startup_s or spec.startup_s
    waiting = signals.urgent.waiting_requests
    quiet_s = now_s - memory.last_request_s
    if spec.min_replicas == 0 and not waiting and quiet_s >= max(tuning.idle_s, 2 * startup_s):
        return Decision(0, f"nothing has come for {quiet_s:.0f} s")
    floor = 1 if memory.target or quiet_s == 0 else 0
    up = spec.bounded(max(memory.provided, sudden, floor))
    hold_s = memory.caution * tuning.hold_s(startup_s)
    hold = spec.bounded(max(_held(memory, max(memory.provided, memory.spare, sudden), hold_s, now_s), _running(signals, spec), floor))
    if up > memory.target:
        if memory.target == 0:
            return Decision(up, f"requests have come to a pool at zero, {waiting:.0f} wait")
        return Decision(up, f"what comes is new and needs {up}" if sudden > memory.provided else f"demand in {startup_s:.0f} s needs {up}")
    if hold < memory.target and now_s - memory.began_s >= max(2 * tuning.level_s, hold_s):
        return Decision(hold, f"{hold} would have done for {hold_s:.0f} s, with a tenth to spare")
    return Decision(spec.bounded(memory.target), f"demand in {startup_s:.0f} s needs {up}, with a tenth to spare {hold}")


def _learn(memory: _Memory, replicas: int, usual_s: float, now_s: float) -> None:
    """Twice the caution where a smaller pool was soon too small, half where it long was not."""
    if replicas > memory.target and now_s - memory.fell_s < 2 * usual_s:
        memory.caution, memory.fell_s = min(_MAX_CAUTION, 2 * memory.caution), now_s - 1e9
    elif replicas < memory.target:
        if now_s - memory.fell_s > 8 * usual_s:
            memory.caution = max(1.0, memory.caution / 2)
        memory.fell_s = now_s
    memory.target = replicas


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
