"""The model that this gateway serves and its limits, derived once from settings and model facts."""

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
    """The model of this application."""

    model: str
    """Name that requests use."""
    source: str
    """Where the weights come from, without local paths."""
    revision: str
    """Revision of the source; empty if it has none."""
    adapters: tuple[str, ...]
    """Names of the adapters in the settings; those of the registry are not included."""
    local_adapters: Mapping[str, Path]
    """Folders of the adapters that are on this machine."""
    registry: AdapterRegistry
    """Adapters that fine-tuning jobs publish."""
    max_adapter_rank: int
    """Largest rank of a LoRA adapter."""
    limits: dict[Pool, ModelLimits]
    """Limits of one request, for each enabled pool."""
    default_pooling: Pooling
    """Pooling of embeddings if the request names none."""
    embedding_dimensions: int
    """Length of each vector."""
    embedding_layer: int
    """Layer whose output is embedded, counted from 1."""
    final_layer_norm: bool
    """Whether the final layer norm is applied to that output."""
    end_of_text_id: int
    """Id of the end-of-text token."""

    @classmethod
    def from_settings(cls, settings: ServedModelSettings, facts: ModelFacts) -> "Served":
        """Derives everything from the settings and the facts of the model."""
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
        """Returns the part that a tenant may use. Everything else looks to it as if it did not exist."""
        adapters = usable_adapters(tenant, self.adapters, self.registry.current)
        if tenant.models is None and adapters == self.adapters:
            return self
        return replace(self, adapters=adapters, limits=self.limits if tenant.models is None or self.model in tenant.models else {})

    def limits_of(self, pool: Pool, name: str) -> ModelLimits:
        """Returns the limits of a model by name; an empty name means the served one. Raises UNKNOWN_MODEL, listing what is served."""
        if name not in ("", self.model) or pool not in self.limits:
            raise self._unknown("model", name, [self.model] if pool in self.limits else [])
        return self.limits[pool]

    def check_name(self, name: str) -> None:
        """Raises UNKNOWN_MODEL, listing what is served, unless this is the name of the model. An empty name is not accepted here."""
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
        """Returns the folder of an adapter, or None if it is not on this machine."""
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
    """Returns only the name of a local folder, because clients must not see paths of this machine."""
    return source.rstrip("/").rsplit("/", 1)[-1] if source.startswith(("/", ".", "~")) else source
