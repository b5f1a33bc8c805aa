"""A model of how long an engine step takes.

A step reads all weights once (fixed cost). It then computes one token for each sequence that it decodes, reads each token in the KV cache
of these sequences, and computes prompt tokens on the side.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepTime:
    """Step time of one replica: its model on its GPUs."""

    fixed_s: float
    """Cost of every step; above 0."""
    per_sequence_s: float
    """Cost of each decoded sequence."""
    per_resident_token_s: float
    """Cost of each token in the KV cache of the decoded sequences."""
    prefill_per_token_s: float
    """Cost of each prompt token."""

    def __post_init__(self) -> None:
        parts = (self.fixed_s, self.per_sequence_s, self.per_resident_token_s, self.prefill_per_token_s)
        if min(parts) < 0 or self.fixed_s == 0:
            raise ValueError(f"step time {parts}: no part may be negative, and fixed_s must be positive")

    def decode_s(self, sequences: float, resident_tokens: float) -> float:
        """Returns the time of a step. resident_tokens: tokens of all decoded sequences in the KV cache."""
        return self.fixed_s + self.per_sequence_s * sequences + self.per_resident_token_s * resident_tokens

    def prefill_s(self, tokens: float) -> float:
        """Returns the time that prompt tokens add to the steps that compute them."""
        return self.prefill_per_token_s * tokens

    def scaled(self, *, weights: float, arithmetic: float, kv: float) -> "StepTime":
        """Returns the step time on other hardware: factors for reading weights, computing, and reading the KV cache."""
        return StepTime(
            self.fixed_s * weights, self.per_sequence_s * arithmetic, self.per_resident_token_s * kv, self.prefill_per_token_s * arithmetic
        )
