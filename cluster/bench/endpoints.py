"""The system that `neox-serve bench` measures: its address and what it says about its model."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neox_serve.client import Client, ServeError, Tls
from neox_serve.core.errors import Reason
from neox_serve.loadgen.targets import TargetSpec
from neox_serve.loadgen.targets.grpc_gateway import GatewaySpec, Metadata
from neox_serve.loadgen.targets.openai_server import OpenAiSpec
from neox_serve.loadgen.workloads import SMALLEST_VOCABULARY

if TYPE_CHECKING:
    from neox_serve.client import Model

_CALL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A system under test."""

    backend: str
    address: str
    model: str
    max_model_len: int | None
    """Context length in tokens; None if the system does not say."""
    vocabulary_size: int
    target: TargetSpec


def gateway_endpoint(address: str, tls: Tls | None, model: str | None, metadata: Metadata, channels: int) -> Endpoint:
    """A gateway of neox-serve. Raises ServeError if it cannot be called or does not serve the model."""
    with Client(address, tls=tls, metadata=dict(metadata)) as client:
        served = _select(client.models(timeout_s=_CALL_TIMEOUT_S), model)
    target = GatewaySpec(address, channels, served.name, tls, metadata)
    return Endpoint("neox-serve", address, served.name, served.limits.max_model_len, served.limits.vocabulary_size, target)


def openai_endpoint(url: str, tls: Tls | None, model: str, metadata: Metadata) -> Endpoint:
    """A server with the OpenAI completions API. Raises TargetError."""
    files = (tls.root_ca, tls.certificate, tls.key) if tls else (None, None, None)
    target = OpenAiSpec(url.rstrip("/"), model, metadata, *files)
    return Endpoint("openai", url, model, asyncio.run(target.max_model_len()), SMALLEST_VOCABULARY, target)


def _select(models: "tuple[Model, ...]", name: str | None) -> "Model":
    found = [model for model in models if name in {None, model.name} and "generate" in model.capabilities]
    if not found:
        names = ", ".join(model.name for model in models) or "none"
        raise ServeError(Reason.UNKNOWN_MODEL, f"the gateway does not serve {name or 'a model that generates'}; it serves {names}")
    return found[0]
