"""What keeps the cluster from its full service, as one gateway knows it."""

from dataclasses import dataclass

from neox_serve.core.types import Pool
from neox_serve.gateway.dispatch.protocol import Dispatcher

ROUTER_DOWN = "ROUTER_DOWN"
NO_READY_REPLICA = "NO_READY_REPLICA"
DRAINING = "DRAINING"


@dataclass(frozen=True, slots=True)
class Condition:
    """reason: stable, for programs. message: for people."""

    reason: str
    message: str


def conditions(dispatcher: Dispatcher, pools: tuple[Pool, ...], *, draining: bool) -> list[Condition]:
    """All that is amiss now, worst last known first; empty where nothing is."""
    found: list[Condition] = []
    if not dispatcher.router_connected:
        found.append(Condition(ROUTER_DOWN, "the router does not answer; requests go on with what this gateway knows of the replicas"))
    found += [
        Condition(NO_READY_REPLICA, f"no {pool} replica takes requests; those calls are refused until one does")
        for pool in pools
        if dispatcher.ready_replicas(pool) == 0 and not dispatcher.may_wake(pool)
    ]
    if draining:
        found.append(Condition(DRAINING, "this gateway finishes what it has and takes nothing new"))
    return found
