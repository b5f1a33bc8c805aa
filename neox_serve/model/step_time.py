"""How long a step of an engine takes: the sum of what all sequences share and what each adds.

A step reads all weights once (fixed), then for each sequence that it decodes does a token's arithmetic, for each token in the KV cache of
those reads that, and computes prompt tokens beside.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds, of one replica: its model on its GPUs."""

    fixed_s: float
    per_sequence_s: float
    per_resident_token_s: float
    prefill_per_token_s: float

    def __post_init__(self) -> None:
        parts = (self.fixed_s, self.per_sequence_s, self.per_resident_token_s, self.prefill_per_token_s)
        if min(parts) < 0 or self.fixed_s == 0:
            raise ValueError(f"step time {parts}: no part may be negative, and fixed_s must be positive")

    def decode_s(self, sequences: float, resident_tokens: float) -> float:
        """A step that decodes so many sequences, which have so many tokens in the KV cache."""
        return self.fixed_s + self.per_sequence_s * sequences + self.per_resident_token_s * resident_tokens

    def prefill_s(self, tokens: float) -> float:
        """What so many prompt tokens add to the steps that compute them."""
        return self.prefill_per_token_s * tokens

    def scaled(self, *, weights: float, arithmetic: float, kv: float) -> "StepTime":
        """On other hardware: factors of the time to read weights, to compute, and to read the KV cache."""
        return StepTime(
            self.fixed_s * weights, self.per_sequence_s * arithmetic, self.per_resident_token_s * kv, self.prefill_per_token_s * arithmetic
        )
