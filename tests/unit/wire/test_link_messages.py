"""Internal messages keep every value when they are converted and parsed back."""

import math
from collections.abc import Callable
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.cluster import (
    ClusterView,
    Demand,
    GatewayView,
    Lease,
    Outstanding,
    Replica,
    ReplicaLoad,
    ReplicaPhase,
    ReplicaView,
    RequestTimings,
    Settled,
    Terms,
)
from neox_serve.core.errors import FieldViolation, Reason, ServeError
from neox_serve.core.prefix_cache.block_index import BlockNews
from neox_serve.core.scheduling.cluster_state import Grant
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.types import (
    Beam,
    Choice,
    Delta,
    EmbeddingRequest,
    EmbeddingResult,
    Finish,
    FinishReason,
    GenerationRequest,
    JsonSchema,
    Pool,
    Pooling,
    PositionLogprobs,
    PromptFacts,
    Regex,
    Sampling,
    SequenceDelta,
    Stopping,
    TokenLogprob,
)
from neox_serve.internal.v1 import engine_link_pb2 as engine_pb
from neox_serve.internal.v1 import router_link_pb2 as router_pb
from neox_serve.wire import engine_messages, replica_messages, router_messages

M = TypeVar("M", engine_pb.ConnectResponse, engine_pb.SubmitGeneration, engine_pb.SubmitEmbedding)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
IDS = st.lists(U32, max_size=4).map(tuple)
F32 = st.floats(width=32, allow_nan=False)
F64 = st.floats(allow_nan=False)


def tuples(of: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(of, max_size=3).map(tuple)


TOKENS = st.builds(TokenLogprob, U32, F32, U32, TEXT)
POSITIONS = st.builds(PositionLogprobs, TOKENS, tuples(TOKENS))
FINISHES = st.builds(Finish, st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]), st.none() | NAME | U32)
ERRORS = st.builds(
    ServeError,
    st.sampled_from(Reason),
    TEXT,
    st.dictionaries(TEXT, TEXT, max_size=2),
    st.none() | st.floats(0.001, 100.0),
    tuples(st.builds(FieldViolation, TEXT, TEXT)),
)
SEQUENCES = st.builds(SequenceDelta, U32, TEXT, IDS, tuples(POSITIONS), st.none() | FINISHES, st.none() | F64)
PROMPTS = st.builds(PromptFacts, U32, tuples(POSITIONS))
DELTAS = st.one_of(
    st.builds(Delta, U32, tuples(SEQUENCES), st.none() | PROMPTS),
    st.builds(Delta, U32, tuples(SEQUENCES), st.none() | PROMPTS, st.just(True), st.none() | ERRORS),
)
STOPPINGS = st.integers(1, 2048).flatmap(
    lambda max_tokens: st.builds(Stopping, st.just(max_tokens), st.integers(0, max_tokens), tuples(NAME), IDS, st.booleans(), st.booleans())
)
SAMPLINGS = st.builds(Sampling, F64, F64, U32, F64, F64, F64, F64, st.none() | U64, st.dictionaries(U32, F32, max_size=3))
STRUCTURED_OUTPUTS = st.none() | st.builds(JsonSchema, TEXT) | st.builds(Regex, TEXT) | st.builds(Choice, tuples(TEXT))
BEAMS = st.none() | st.integers(1, 8).flatmap(lambda width: st.builds(Beam, st.just(width), F64, st.integers(1, width)))
PROMPT_IDS = st.lists(U32, min_size=1, max_size=4).map(tuple)
GENERATIONS = st.builds(
    GenerationRequest,
    NAME,
    PROMPT_IDS,
    STOPPINGS,
    SAMPLINGS,
    STRUCTURED_OUTPUTS,
    BEAMS,
    st.integers(1, 16),
    st.none() | U32,
    st.none() | U32,
    st.none() | NAME,
    st.none() | NAME,
    traceparent=TEXT,
    tokens_per_delta=st.integers(1, 2**31),
)
EMBEDDINGS = st.builds(EmbeddingRequest, NAME, PROMPT_IDS, st.sampled_from(Pooling), st.booleans(), st.none() | NAME, TEXT)
REPLICAS = st.builds(Replica, NAME, st.sampled_from(Pool), NAME, NAME, st.integers(1, 2**31), st.sampled_from(ReplicaPhase), U32)
LOADS = st.builds(ReplicaLoad, U32, U32, F64, F64, st.frozensets(NAME), U64)
TIMINGS = st.builds(RequestTimings, F64, st.none() | F64)
SETTLEMENTS = st.lists(st.builds(Settled, U64, U32, U32, st.none() | TIMINGS), max_size=4)
TERMS = st.builds(Terms, NAME, F64, st.sampled_from(PriorityClass), F64.filter(lambda value: value != -math.inf), F64)
DEMANDS = st.builds(Demand, st.sampled_from(Pool), NAME, U32, U32, tuples(NAME), TERMS, st.none() | NAME, TEXT, tuples(U64), U32)


def over_the_wire(message: M) -> M:
    return type(message).FromString(message.SerializeToString())


@given(st.lists(DELTAS, max_size=4))
def test_step_frame_carries_every_delta(deltas: list[Delta]) -> None:
    link_key: Callable[[int], int] = lambda key: key  # noqa: E731
    frame = over_the_wire(engine_messages.step_to_proto(deltas, link_key))
    assert frame.WhichOneof("message") == "step"
    assert [engine_messages.delta_from_proto(delta) for delta in frame.step.deltas] == deltas


@given(U32, GENERATIONS)
def test_generation_request_survives_the_round_trip(key: int, request: GenerationRequest) -> None:
    message = over_the_wire(engine_messages.generation_to_proto(key, request))
    assert (message.key, engine_messages.generation_from_proto(message)) == (key, request)


@given(U32, EMBEDDINGS)
def test_embedding_request_survives_the_round_trip(key: int, request: EmbeddingRequest) -> None:
    message = over_the_wire(engine_messages.embedding_to_proto(key, request))
    assert (message.key, engine_messages.embedding_from_proto(message)) == (key, request)


@given(U32, st.builds(EmbeddingResult, st.binary(max_size=16), U32) | ERRORS)
def test_embedding_result_survives_the_round_trip(key: int, result: EmbeddingResult | ServeError) -> None:
    frame = over_the_wire(engine_messages.embedding_result_to_proto(key, result)).embedding
    assert (frame.key, engine_messages.embedding_result_from_proto(frame)) == (key, result)


@given(U64, DEMANDS)
def test_demand_survives_the_round_trip(lease_id: int, demand: Demand) -> None:
    message = router_messages.admit(lease_id, demand).admit
    assert (message.lease_id, router_messages.demand_from_proto(message)) == (lease_id, demand)


@given(st.lists(st.builds(Lease, U64, NAME, U64, U32), max_size=3))
def test_leases_survives_the_round_trip(leases: list[Lease]) -> None:
    hello = router_messages.gateway_hello("g", leases).hello
    adopted = router_messages.adopted(leases).adopted
    assert [router_messages.lease_from_proto(lease) for lease in hello.leases] == leases
    assert [router_messages.lease_from_proto(lease) for lease in adopted.leases] == leases


@given(st.builds(ServeError, st.sampled_from(Reason), TEXT, st.dictionaries(TEXT, TEXT, max_size=2), st.none() | st.floats(0.001, 100.0)))
def test_refusal_survives_the_round_trip(error: ServeError) -> None:
    assert router_messages.admission_from_proto(router_messages.refuse(7, error).admit) == error


@given(SETTLEMENTS)
def test_settlements_survives_the_round_trip(settled: list[Settled]) -> None:
    assert router_messages.settled_from_proto(router_messages.settlements(settled).settlements) == settled


@given(st.builds(Grant, NAME, U32, TEXT))
def test_grant_survives_the_round_trip(grant: Grant) -> None:
    back = router_messages.admission_from_proto(router_messages.grant(7, grant).admit)
    assert isinstance(back, Grant)
    assert (back, back.explanation) == (grant, grant.explanation)


@given(st.builds(BlockNews, U64, tuples(U64), tuples(U64), st.booleans()))
def test_block_news_survives_the_round_trip(news: BlockNews) -> None:
    assert replica_messages.block_news_from_proto(replica_messages.block_news(news).block_news) == news


@given(
    st.lists(st.builds(ReplicaView, REPLICAS, LOADS, st.builds(Outstanding, U32, U64), F64), max_size=3).map(tuple),
    st.lists(st.builds(GatewayView, NAME, U32, F64), max_size=3).map(tuple),
)
def test_view_survives_the_round_trip(replicas: tuple[ReplicaView, ...], gateways: tuple[GatewayView, ...]) -> None:
    view = ClusterView(replicas, gateways, from_router=True)
    message = router_messages.view_to_proto(5, view).view
    assert (message.view_id, router_messages.view_from_proto(message)) == (5, view)


@given(REPLICAS)
def test_replica_survives_the_round_trip(replica: Replica) -> None:
    (listed,) = router_messages.replicas_from_proto(router_messages.replica_set([replica]).replicas)
    said: router_pb.Replica = replica_messages.replica_hello(replica).hello.replica
    assert listed == replica_messages.replica_from_proto(said) == replica
