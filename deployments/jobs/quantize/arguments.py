"""The command line of a quantising job."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCHEME_NAMES = ("w8a8", "w4a16")
_POSITIVE = ("sequences", "sequence_tokens")


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """What to do. model: "builtin", a folder or a hub name. output: folder, there once it is whole. calibration: a file of text to round
    against. held_out: a file of other text, to measure on. sequences, sequence_tokens: that are taken of the calibration text.
    """

    model: str
    output: Path
    scheme: str
    calibration: Path
    held_out: Path
    sequences: int = 64
    sequence_tokens: int = 512
    revision: str | None = None


def parse_arguments(arguments: Sequence[str] | None = None) -> QuantizeJob:
    """The job that the arguments describe; wrong ones exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m deployments.jobs.quantize", description="Quantises a checkpoint.")
    parser.add_argument("--model", default="builtin", help="builtin, a folder or a hub name")
    parser.add_argument("--revision", help="of a model on the hub")
    parser.add_argument("--output", required=True, type=Path, help="folder that gets the quantised checkpoint")
    parser.add_argument("--scheme", required=True, choices=SCHEME_NAMES, help="w8a8: 8 bits, inputs too; w4a16: 4 bits in groups of 128")
    parser.add_argument("--calibration", required=True, type=Path, help="text file to round against, like what the model will read")
    parser.add_argument("--held-out", required=True, type=Path, help="text file to measure on, before and after")
    parser.add_argument("--sequences", type=int, default=64, help="taken of the calibration text")
    parser.add_argument("--sequence-tokens", type=int, default=512, help="tokens of each")
    values = vars(parser.parse_args(arguments))
    for name in _POSITIVE:
        if values[name] < 1:
            parser.error(f"argument --{name.replace('_', '-')}: got {values[name]}, must be at least 1")
    return QuantizeJob(**values)
