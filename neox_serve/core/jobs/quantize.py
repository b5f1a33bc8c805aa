"""What a quantising job is asked for: the served model with fewer bits a weight. Pure; the rounding is a job's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

QUANTIZE = "quantize"
"""The kind of such jobs."""
SCHEME_NAMES = ("w8a8", "w4a16")
"""8 bits a weight, and what comes into a matrix rounded to 8 bits too; 4 bits a weight, in groups of 128."""


@dataclass(frozen=True, slots=True)
class QuantizeWork:
    """A checkpoint to be made. output: its folder. calibration, held_out: files of text, to round against and to measure on.

    sequences, sequence_tokens: that are taken of the calibration text. held_out_tokens: that are measured on, at most. serve_tokens:
    tokens that an engine of each checkpoint generates after the other, to compare their speed and what they say; 0: no engine is started.
    """

    scheme: str
    output: str
    calibration: str
    held_out: str
    sequences: int = 64
    sequence_tokens: int = 512
    held_out_tokens: int = 16_384
    serve_tokens: int = 0

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "QuantizeWork":
        """From what `asdict` made of it, and JSON of that."""
        return cls(**values)

    def problems(self) -> Iterator[tuple[str, object, str]]:
        """Every wrong field with its value and what is allowed."""
        checks = (
            ("scheme", self.scheme in SCHEME_NAMES, " or ".join(SCHEME_NAMES)),
            ("sequences", 1 <= self.sequences <= 65_536, "in [1, 65536]"),
            ("sequence_tokens", 1 <= self.sequence_tokens <= 2_048, "in [1, 2048]"),
            ("held_out_tokens", 2 <= self.held_out_tokens <= 1 << 24, f"in [2, {1 << 24}]"),
            ("serve_tokens", 0 <= self.serve_tokens <= 1_024, "in [0, 1024]"),
        )
        return ((name, getattr(self, name), allowed) for name, good, allowed in checks if not good)
