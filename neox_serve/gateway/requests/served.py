"""What this gateway serves and within which limits, worked out once from settings and model facts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.core.types import ModelLimits, Pool, Pooling
from neox_serve.engine.vllm.plugins.layers import final_layer_norm
from neox_serve.model.adapter_names import usable_adapters
from neox_serve.model.adapter_registry import AdapterRegistry
from neox_serve.model.facts import ModelFacts
from neox_serve.settings.slices import ServedModelSettings


@dataclass(frozen=True, slots=True)
class Served:
    """The one model of this application. limits: by pool, for the pools that are enabled. adapters: but for those of the registry.

    local_adapters: folders of those that are on this machine.
    """

    model: str
    source: str
    revision: str
    adapters: tuple[str, ...]
    local_adapters: Mapping[str, Path]
    registry: AdapterRegistry
    max_adapter_rank: int
    limits: dict[Pool, ModelLimits]
    default_pooling: Pooling
    embedding_dimensions: int
    embedding_layer: int
    final_layer_norm: bool
    end_of_text_id: int

    @classmethod
    def from_settings(cls, settings: ServedModelSettings, facts: ModelFacts) -> "Served":
        """What the settings say about a model of these facts."""
        limits = {pool: _limits(settings, facts, max_model_len) for pool, max_model_len in settings.max_model_len.items()}
        paths = {adapter.name: Path(adapter.path).expanduser() for adapter in settings.model.adapters if "://" not in adapter.path}
        local = {name: path for name, path in paths.items() if path.is_dir()}
        return cls(
            model=settings.model.name,
            source=_public_source(settings.model.source),
            revision=settings.model.revision or "",
            adapters=tuple(adapter.name for adapter in settings.model.adapters),
            local_adapters=local,
            registry=AdapterRegistry(settings.model.registry),
            max_adapter_rank=settings.max_lora_rank,
            limits=limits,
            default_pooling=settings.output.default_pooling,
            embedding_dimensions=facts.hidden_size,
            embedding_layer=settings.output.layer or facts.layers,
            final_layer_norm=final_layer_norm(settings.output, facts),
            end_of_text_id=facts.eos_token_id,
        )

    def seen_by(self, tenant: Tenant) -> "Served":
        """What of it there is for a tenant; the rest is as unknown to it as what does not exist."""
        adapters = usable_adapters(tenant, self.adapters, self.registry.current)
        if tenant.models is None and adapters == self.adapters:
            return self
        return replace(self, adapters=adapters, limits=self.limits if tenant.models is None or self.model in tenant.models else {})

    def limits_of(self, pool: Pool, name: str) -> ModelLimits:
        """The limits of the model of that name (empty: the one served). Raises UNKNOWN_MODEL, listing what is served."""
        if name not in ("", self.model) or pool not in self.limits:
            raise self._unknown("model", name, [self.model] if pool in self.limits else [])
        return self.limits[pool]

    def check_name(self, name: str) -> None:
        """Raises UNKNOWN_MODEL, listing what is served, unless this is the model's name; an empty one stands for none here."""
        if name != self.model or not self.limits:
            raise self._unknown("name", name, [self.model] if self.limits else [])

    def check_adapter(self, name: str) -> None:
        """Raises UNKNOWN_ADAPTER, listing what is served, unless the name is empty or served."""
        if name and name not in self.adapters:
            raise ServeError(
                Reason.UNKNOWN_ADAPTER,
                f"adapter: {name!r} is not served; served: {', '.join(self.adapters) or 'none'}",
                metadata={"field": "adapter", "value": name, "served": ",".join(self.adapters)},
            )

    def adapter_folder(self, name: str) -> Path | None:
        """Where an adapter is; None where it is not on this machine."""
        return self.local_adapters.get(name) or self.registry.find(name)

    def _unknown(self, field: str, name: str, known: list[str]) -> ServeError:
        return ServeError(
            Reason.UNKNOWN_MODEL,
            f"{field}: {name!r} is not served; served: {', '.join(known) or 'none'}",
            metadata={"field": field, "value": name, "served": ",".join(known)},
        )


def _limits(settings: ServedModelSettings, facts: ModelFacts, max_model_len: int | None) -> ModelLimits:
    return ModelLimits(
        max_model_len=max_model_len or facts.positions,
        vocabulary_size=facts.vocabulary_size,
        prompts_per_request=settings.limits.prompts_per_request,
        n=settings.limits.n,
        beam_width=settings.limits.beam_width,
        logprobs=settings.limits.logprobs,
        request_bytes=settings.limits.request_bytes,
    )


def _public_source(source: str) -> str:
    """A local folder by its name alone: where it lies is nobody's business."""
    return source.rstrip("/").rsplit("/", 1)[-1] if source.startswith(("/", ".", "~")) else source
