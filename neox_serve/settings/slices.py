"""The slice of the settings that each process of a cluster gets.

The composition root (deployments/app.py) makes the slices from the whole tree, and each process validates its own when it starts. No field
of a slice has a default, and `Slice.read` also rejects values in which any setting below it is missing. So a process cannot silently run
with a default of a setting that was not passed to it.

Slices are narrow on purpose: Ray Serve restarts a deployment if its arguments change. A change of an engine setting must not restart the
router, the gateways or the other pool.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from neox_serve.core.types import Pool, Pooling
from neox_serve.settings.cluster import BatchSettings, LinkSettings, LogSettings, MetricsSettings, RouterSettings, TracingSettings
from neox_serve.settings.derived import connect_address, pool_settings
from neox_serve.settings.engines import EmbeddingSettings, EngineSettings, GenerationSettings, ModelSettings, ReplicaSettings
from neox_serve.settings.gateway import AccessSettings, GatewaySettings, LimitSettings
from neox_serve.settings.loading import SettingsError, explained, load
from neox_serve.settings.scaling import ScalingSettings
from neox_serve.settings.sections import Section
from neox_serve.settings.tree import Settings

COMPLETE_FILE_SUFFIX = ".complete.json"
"""Suffix of a settings file that contains the dump of a JobEngineSettings. The environment does not override such a file."""


class Slice(Section):
    """Base class of the slices."""

    def dump(self) -> dict[str, Any]:
        """Returns the slice as JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Returns the slice from the values that `dump` returned. Raises SettingsError if a value is missing, unknown or invalid."""
        with explained():
            restored = cls.model_validate(values)
        if missing := list(_missing(restored, "")):
            raise SettingsError("\n".join(f"{key}: is missing" for key in missing))
        return restored


def _missing(value: object, key: str) -> Iterator[str]:
    """Yields the keys below a value that were not given, so that a default has taken their place."""
    if isinstance(value, Section):
        for name in type(value).model_fields:
            path = f"{key}.{name}" if key else name
            if name not in value.model_fields_set:
                yield path
            else:
                yield from _missing(getattr(value, name), path)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _missing(part, f"{key}.{name}")
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from _missing(part, f"{key}.{index}")


class EmbeddingOutputSettings(Slice):
    """How the embedding pool makes vectors, which its engines and the gateways must agree on."""

    default_pooling: Pooling
    """Pooling of requests that do not choose one."""
    layer: int | None
    """Layer whose output is used, counted from 1; None: the last."""
    final_layer_norm: bool | None
    """Whether the model's final layer norm is applied; None: only to the last layer's output."""

    @classmethod
    def from_section(cls, section: EmbeddingSettings) -> Self:
        """Returns the part of the section that is about vectors."""
        return cls(default_pooling=section.default_pooling, layer=section.layer, final_layer_norm=section.final_layer_norm)


class JobEngineSettings(Slice):
    """What a batch job with its own engine needs. Its dump is a valid settings file; it contains no secrets."""

    model: ModelSettings
    generation: GenerationSettings
    embedding: EmbeddingSettings
    limits: LimitSettings
    log: LogSettings
    state_folder: Path

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Returns the slice of a whole tree."""
        return cls(**{name: getattr(settings, name) for name in cls.model_fields})

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Returns the slice of a settings file that a user wrote, or of one that the job controller wrote. None: the defaults.

        Raises SettingsError.
        """
        if path is None or not path.name.endswith(COMPLETE_FILE_SUFFIX):
            return cls.from_settings(load(path))
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path}: {error}") from error
        return cls.read(values)


class PoolEngineSettings(Slice):
    """What an engine of one pool is started with."""

    pool: Pool
    model: ModelSettings
    engine: EngineSettings
    replicas: ReplicaSettings
    output: EmbeddingOutputSettings | None
    """None for the generation pool."""
    max_logprobs: int
    """Maximum number of alternatives per position that any request needs, those of beam searches included."""
    log: LogSettings
    state_folder: Path

    @classmethod
    def from_settings(cls, settings: Settings | JobEngineSettings, pool: Pool) -> Self:
        """Returns the slice of a pool."""
        section = settings.generation if pool is Pool.GENERATION else settings.embedding
        return cls(
            pool=pool,
            model=settings.model,
            engine=section.engine,
            replicas=section.replicas,
            output=EmbeddingOutputSettings.from_section(section) if isinstance(section, EmbeddingSettings) else None,
            max_logprobs=max(settings.limits.logprobs, 2 * settings.limits.beam_width),
            log=settings.log,
            state_folder=settings.state_folder,
        )

    @property
    def on_gpu(self) -> bool:
        """Whether the engine runs on GPUs."""
        return self.replicas.gpus_per_worker > 0


class ServedModelSettings(Slice):
    """What determines which requests can be served, and with which limits."""

    model: ModelSettings
    limits: LimitSettings
    max_model_len: dict[Pool, int | None]
    """Maximum context length of each pool that exists, in tokens; None: the model's number of positions."""
    max_lora_rank: int
    output: EmbeddingOutputSettings

    @classmethod
    def from_settings(cls, settings: Settings | JobEngineSettings) -> Self:
        """Returns the slice of a tree."""
        max_model_len = {Pool.GENERATION: settings.generation.engine.max_model_len}
        if settings.embedding.enabled:
            max_model_len[Pool.EMBEDDING] = settings.embedding.engine.max_model_len
        return cls(
            model=settings.model,
            limits=settings.limits,
            max_model_len=max_model_len,
            max_lora_rank=settings.generation.engine.max_lora_rank,
            output=EmbeddingOutputSettings.from_section(settings.embedding),
        )


class ReplicaProcessSettings(Slice):
    """Settings of an engine replica."""

    engine: PoolEngineSettings
    link_host: str
    """Address on which the replica listens for gateways; an unspecified address stands for the node's own."""
    load_report_interval_s: float
    links: LinkSettings
    tracing: TracingSettings

    @classmethod
    def from_settings(cls, settings: Settings, pool: Pool) -> Self:
        """Returns the slice of a replica of a pool."""
        return cls(
            engine=PoolEngineSettings.from_settings(settings, pool),
            link_host=settings.router.host,
            load_report_interval_s=settings.router.load_report_interval_s,
            links=settings.links,
            tracing=settings.tracing,
        )


class GatewayProcessSettings(Slice):
    """Settings of a gateway."""

    served: ServedModelSettings
    gateway: GatewaySettings
    access: AccessSettings
    link_host: str
    """Address on which the gateway listens for other gateways; an unspecified address stands for the node's own."""
    links: LinkSettings
    tracing: TracingSettings
    log: LogSettings
    state_folder: Path

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Returns the slice of a whole tree."""
        return cls(
            served=ServedModelSettings.from_settings(settings),
            gateway=settings.gateway,
            access=settings.access,
            link_host=settings.router.host,
            links=settings.links,
            tracing=settings.tracing,
            log=settings.log,
            state_folder=settings.state_folder,
        )


class ScaledPoolSettings(Slice):
    """What the scaling of a pool depends on."""

    replicas: ReplicaSettings
    workers_per_replica: int


class RouterProcessSettings(Slice):
    """Settings of the router's process, which also scales the pools and opens the database."""

    router: RouterSettings
    scaling: ScalingSettings
    model_name: str
    pools: dict[Pool, ScaledPoolSettings]
    """The pools that exist."""
    access: AccessSettings
    metrics: MetricsSettings
    links: LinkSettings
    tracing: TracingSettings
    log: LogSettings
    state_folder: Path

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Returns the slice of a whole tree."""
        pools = [Pool.GENERATION, *([Pool.EMBEDDING] if settings.embedding.enabled else [])]
        return cls(
            router=settings.router,
            scaling=settings.scaling,
            model_name=settings.model.name,
            pools={pool: _scaled_pool(pool_settings(settings, pool)) for pool in pools},
            access=settings.access,
            metrics=settings.metrics,
            links=settings.links,
            tracing=settings.tracing,
            log=settings.log,
            state_folder=settings.state_folder,
        )


def _scaled_pool(section: GenerationSettings | EmbeddingSettings) -> ScaledPoolSettings:
    return ScaledPoolSettings(replicas=section.replicas, workers_per_replica=section.engine.workers)


class JobControllerSettings(Slice):
    """Settings of the controller of batch jobs.

    It runs in the router's process but gets its settings apart from the router's (Serve's `user_config`), because it needs those of all
    engines and can take changed settings without a restart.
    """

    batch: BatchSettings
    gateway_address: str
    """host:port of the gateway that jobs call."""
    gateway_tls: bool
    """Whether that gateway speaks TLS."""
    engines: JobEngineSettings

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Returns the slice of a whole tree."""
        return cls(
            batch=settings.batch,
            gateway_address=settings.batch.gateway_address or connect_address(settings.gateway.host, settings.gateway.port),
            gateway_tls=settings.gateway.tls_certificate is not None or settings.batch.tls_ca is not None,
            engines=JobEngineSettings.from_settings(settings),
        )

    @property
    def state_folder(self) -> Path:
        """The state folder of the cluster."""
        return self.engines.state_folder
