"""ModelService: the served models and their limits."""

from neox_serve.core.types import ModelLimits, Pool
from neox_serve.gateway.dispatch.protocol import Dispatcher
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.server.calls import Call
from neox_serve.v1 import model_service_pb2
from neox_serve.wire.public_messages import POOLINGS

_GENERATION = (
    model_service_pb2.CAPABILITY_GENERATE,
    model_service_pb2.CAPABILITY_STRUCTURED_OUTPUT,
    model_service_pb2.CAPABILITY_BEAM_SEARCH,
)


class Models:
    """Implements the service."""

    def __init__(self, *, served: Served, dispatcher: Dispatcher) -> None:
        self._served = served
        self._dispatcher = dispatcher

    async def list_models(self, call: Call, _message: model_service_pb2.ListModelsRequest) -> model_service_pb2.ListModelsResponse:
        """Returns all models that the tenant may use."""
        served = self._served.seen_by(call.tenant)
        return model_service_pb2.ListModelsResponse(models=[self._model(served)] if served.limits else [])

    async def get_model(self, call: Call, message: model_service_pb2.GetModelRequest) -> model_service_pb2.GetModelResponse:
        """Returns one model. Raises UNKNOWN_MODEL, also for an empty name, because this call has no default."""
        served = self._served.seen_by(call.tenant)
        served.check_name(message.name)
        return model_service_pb2.GetModelResponse(model=self._model(served))

    def _model(self, served: Served) -> model_service_pb2.Model:
        ready = self._dispatcher.ready_replicas
        model = model_service_pb2.Model(
            name=served.model,
            source=served.source,
            revision=served.revision,
            capabilities=_capabilities(served),
            limits=_limits(served.limits[Pool.GENERATION]),
            adapters=served.adapters,
            ready_generation_replicas=ready(Pool.GENERATION),
            ready_embedding_replicas=ready(Pool.EMBEDDING),
        )
        if Pool.EMBEDDING in served.limits:
            model.embedding.dimensions = served.embedding_dimensions
            model.embedding.default_pooling = POOLINGS[served.default_pooling]
            model.embedding.layer = served.embedding_layer
            model.embedding.final_layer_norm = served.final_layer_norm
        return model


def _capabilities(served: Served) -> list[model_service_pb2.Capability.ValueType]:
    embeds = [model_service_pb2.CAPABILITY_EMBED] if Pool.EMBEDDING in served.limits else []
    adapts = [model_service_pb2.CAPABILITY_ADAPTERS] if served.adapters else []
    return [*_GENERATION, *embeds, *adapts]


def _limits(limits: ModelLimits) -> model_service_pb2.ModelLimits:
    return model_service_pb2.ModelLimits(
        max_model_len=limits.max_model_len,
        vocabulary_size=limits.vocabulary_size,
        prompts_per_request=limits.prompts_per_request,
        n=limits.n,
        beam_width=limits.beam_width,
        logprobs=limits.logprobs,
        stop_sequences=limits.stop_sequences,
        request_bytes=limits.request_bytes,
    )
