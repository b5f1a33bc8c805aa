"""The facts about a model that the system needs, read from the checkpoint's config.json.

Two formats are supported: the one GPT-NeoX checkpoints were published with (`rotary_pct`, `torch_dtype`) and the one that
transformers 5 writes (`rope_parameters.partial_rotary_factor`, `dtype`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL_TYPE = "gpt_neox"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The shape of a GPT-NeoX model."""

    layers: int
    heads: int
    hidden_size: int
    intermediate_size: int
    vocabulary_size: int
    positions: int
    """Maximum number of tokens of context."""
    rotary_fraction: float
    """Fraction of a head's dimensions with rotary position embeddings, in (0, 1]."""
    parallel_residual: bool
    tied_embeddings: bool
    """Whether the input and output embeddings share weights."""
    eos_token_id: int
    weights_dtype: str
    """Data type of the stored weights, for example float16."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size}: must be a multiple of num_attention_heads {self.heads}")
        if not 0 < self.rotary_fraction <= 1:
            raise ValueError(f"rotary_pct {self.rotary_fraction}: must be in (0, 1]")
        if not 0 <= self.eos_token_id < self.vocabulary_size:
            raise ValueError(f"eos_token_id {self.eos_token_id}: must be in [0, vocab_size {self.vocabulary_size})")

    @property
    def head_size(self) -> int:
        """Number of dimensions of one attention head."""
        return self.hidden_size // self.heads

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelFacts":
        """Reads the facts from a parsed config.json. Raises ValueError with the key, the value and what is allowed."""
        if config.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type {config.get('model_type')!r}: must be {MODEL_TYPE!r}")
        return cls(
            layers=_count(config, "num_hidden_layers"),
            heads=_count(config, "num_attention_heads"),
            hidden_size=_count(config, "hidden_size"),
            intermediate_size=_count(config, "intermediate_size"),
            vocabulary_size=_count(config, "vocab_size"),
            positions=_count(config, "max_position_embeddings"),
            rotary_fraction=_rotary_fraction(config),
            parallel_residual=_flag(config, "use_parallel_residual", default=True),
            tied_embeddings=_flag(config, "tie_word_embeddings", default=False),
            eos_token_id=_first_id(config, "eos_token_id"),
            weights_dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
        )


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} {value!r}: must be an integer of at least 1")
    return value


def _flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} {value!r}: must be true or false")  # noqa: TRY004 - the caller is told of one kind of error
    return value


def _first_id(config: Mapping[str, Any], key: str) -> int:
    """A token id; some configs list several, of which the first is the end of text."""
    value = config.get(key)
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} {value!r}: must be a token id")
    return value


def _rotary_fraction(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    value = rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25)) if isinstance(rope, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"rotary_pct {value!r}: must be a number")  # noqa: TRY004
    return float(value)
