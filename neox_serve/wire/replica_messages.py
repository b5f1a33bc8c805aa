"""Conversion of the messages between replicas and the router to core types and back."""

from neox_serve.core.cluster import Replica, ReplicaLoad, ReplicaPhase
from neox_serve.core.prefix_cache.block_index import BlockNews
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire.engine_messages import SCHEMA_VERSION

POOL_TO_PROTO = {Pool.GENERATION: pb.POOL_GENERATION, Pool.EMBEDDING: pb.POOL_EMBEDDING}
POOL_FROM_PROTO = {value: key for key, value in POOL_TO_PROTO.items()}
_PHASE_TO_PROTO = {
    ReplicaPhase.READY: pb.REPLICA_PHASE_READY,
    ReplicaPhase.DRAINING: pb.REPLICA_PHASE_DRAINING,
    ReplicaPhase.UNHEALTHY: pb.REPLICA_PHASE_UNHEALTHY,
}
_PHASE_FROM_PROTO = {value: key for key, value in _PHASE_TO_PROTO.items()}


def replica_to_proto(replica: Replica) -> pb.Replica:
    """Converts a replica."""
    return pb.Replica(
        replica_id=replica.replica_id,
        pool=POOL_TO_PROTO[replica.pool],
        model=replica.model,
        address=replica.address,
        phase=_PHASE_TO_PROTO[replica.phase],
        max_requests=replica.max_requests,
        block_tokens=replica.block_tokens,
    )


def replica_from_proto(message: pb.Replica) -> Replica:
    """Converts a replica. Raises KeyError or ValueError if the message is not valid."""
    return Replica(
        replica_id=message.replica_id,
        pool=POOL_FROM_PROTO[message.pool],
        model=message.model,
        address=message.address,
        max_requests=message.max_requests,
        phase=_PHASE_FROM_PROTO[message.phase],
        block_tokens=message.block_tokens,
    )


def replica_hello(replica: Replica) -> pb.ConnectReplicaRequest:
    """Builds a replica's first message, with its description and phase."""
    return pb.ConnectReplicaRequest(hello=pb.ReplicaHello(schema_version=SCHEMA_VERSION, replica=replica_to_proto(replica)))


def replica_load(load: ReplicaLoad) -> pb.ConnectReplicaRequest:
    """Builds the report of a replica's load."""
    return pb.ConnectReplicaRequest(load=load_to_proto(load))


def replica_phase(phase: ReplicaPhase) -> pb.ConnectReplicaRequest:
    """Builds the report of a replica's phase."""
    return pb.ConnectReplicaRequest(phase=_PHASE_TO_PROTO[phase])


def phase_from_proto(phase: pb.ReplicaPhase.ValueType) -> ReplicaPhase:
    """Converts a replica's phase. Raises KeyError for an unknown one."""
    return _PHASE_FROM_PROTO[phase]


def block_news(news: BlockNews) -> pb.ConnectReplicaRequest:
    """Builds the report of a change of a replica's prefix cache."""
    message = pb.BlockNews(number=news.number, restarts=news.restarts, stored=news.stored, removed=news.removed)
    return pb.ConnectReplicaRequest(block_news=message)


def block_news_from_proto(message: pb.BlockNews) -> BlockNews:
    """Converts a change of a replica's prefix cache."""
    return BlockNews(message.number, tuple(message.stored), tuple(message.removed), message.restarts)


def replica_metrics(text: str) -> pb.ConnectReplicaRequest:
    """Builds the report of a replica's metrics."""
    return pb.ConnectReplicaRequest(metrics=pb.MetricsText(text=text))


def load_to_proto(load: ReplicaLoad) -> pb.ReplicaLoad:
    """Converts a replica's load."""
    return pb.ReplicaLoad(
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        kv_usage_fraction=load.kv_usage_fraction,
        output_tokens_per_second=load.output_tokens_per_second,
        adapters=sorted(load.adapters),
        prefill_backlog_tokens=load.prefill_backlog_tokens,
    )


def load_from_proto(message: pb.ReplicaLoad) -> ReplicaLoad:
    """Converts a replica's load."""
    return ReplicaLoad(
        message.running_requests,
        message.waiting_requests,
        message.kv_usage_fraction,
        message.output_tokens_per_second,
        frozenset(message.adapters),
        message.prefill_backlog_tokens,
    )


def registered() -> pb.ConnectReplicaResponse:
    """Builds the message that a replica's hello was accepted."""
    return pb.ConnectReplicaResponse(registered=True)


def restart_block_news() -> pb.ConnectReplicaResponse:
    """Builds the request to report all contents of the prefix cache again."""
    return pb.ConnectReplicaResponse(restart_block_news=True)


def drain() -> pb.ConnectReplicaResponse:
    """Builds the request to drain."""
    return pb.ConnectReplicaResponse(drain=True)
