"""The whole tree of settings, as a settings file describes it."""

from pathlib import Path

import platformdirs
from pydantic import Field

from neox_serve.settings.cluster import (
    BatchSettings,
    ClientSettings,
    LinkSettings,
    LogSettings,
    MetricsSettings,
    RaySettings,
    RouterSettings,
    TracingSettings,
)
from neox_serve.settings.engines import EmbeddingSettings, GenerationSettings, ModelSettings
from neox_serve.settings.gateway import AccessSettings, GatewaySettings, LimitSettings
from neox_serve.settings.scaling import ScalingSettings
from neox_serve.settings.sections import Section


class Settings(Section):
    """All settings of a cluster. Commands read it; each process of the cluster gets only its slice (see slices.py)."""

    model: ModelSettings = Field(ModelSettings(), description="The checkpoint to serve, and its adapters.")
    generation: GenerationSettings = Field(GenerationSettings(), description="The pool of replicas that generate text.")
    embedding: EmbeddingSettings = Field(EmbeddingSettings(), description="The pool of replicas that compute embeddings.")
    limits: LimitSettings = Field(LimitSettings(), description="Limits of a single request.")
    gateway: GatewaySettings = Field(GatewaySettings(), description="The gateways, which serve the public gRPC API.")
    access: AccessSettings = Field(AccessSettings(), description="Authentication, and the database of tenants, usage and jobs.")
    router: RouterSettings = Field(RouterSettings(), description="Queueing and the choice of a replica.")
    scaling: ScalingSettings = Field(ScalingSettings(), description="How the number of replicas is chosen.")
    batch: BatchSettings = Field(BatchSettings(), description="Batch jobs of tenants.")
    links: LinkSettings = Field(LinkSettings(), description="Mutual TLS between router, gateways and replicas.")
    metrics: MetricsSettings = Field(MetricsSettings(), description="The Prometheus endpoint of the cluster.")
    client: ClientSettings = Field(ClientSettings(), description="Credentials of the `neox-serve` commands.")
    tracing: TracingSettings = Field(TracingSettings(), description="OpenTelemetry traces.")
    log: LogSettings = Field(LogSettings(), description="Log output of every process.")
    ray: RaySettings = Field(RaySettings(), description="The Ray cluster that everything runs on.")
    state_folder: Path = Field(
        default_factory=lambda: platformdirs.user_state_path("neox-serve"),
        description="Folder for state that outlives a cluster: the note about the running cluster, the files of running jobs, copies of "
        "remote adapters and, unless other settings place them elsewhere, the database and the secret. The default depends on the "
        "operating system; on Linux it is ~/.local/state/neox-serve.",
    )
